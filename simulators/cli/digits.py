"""Example models to try Slipway with."""

from pathlib import Path

import click

# The figures of the example models are taken over trials of this length.
TRIAL_WINDOW_READINGS = 20


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--device", "device_ids", multiple=True, metavar="ID", help="A device to deal digits to; repeatable.")
def digits(directory: Path, device_ids: tuple[str, ...]) -> None:
    """Write example models to DIRECTORY: three digit classifiers, and what each device's camera sees.

    Version 2 is better than version 1; version 3 was trained on other pixel values and fails on live input. Trained
    here on scikit-learn's handwritten digits.

    \b
    Example:
      slipway-sim digits ./digits --device camera-1 --device camera-2
    """
    from simulators.demo.materials import write_materials

    devices = device_ids or ("camera-1",)
    made = write_materials(directory, devices, TRIAL_WINDOW_READINGS)
    for files in made.models:
        click.echo(files.onnx.parent)
    for path in made.live_files.values():
        click.echo(path)
