"""`slipway image`: module images."""

import click

from cloud_registry.cli.image_context import image_context
from cloud_registry.cli.image_test import test


@click.group()
def image() -> None:
    """Build, test and ship module images."""


image.add_command(image_context)
image.add_command(test)
