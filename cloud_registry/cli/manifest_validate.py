"""`slipway manifest validate`: what the schemas and the runtime say of a manifest, before a device has to."""

from pathlib import Path
from typing import Any

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.manifest_files import read_content
from cloud_registry.cli.manifest_template import template_options, values_for
from cloud_registry.core.deployment.findings import Problem, Verdict
from cloud_registry.core.deployment.validation import Report, validate
from manifests.exit_codes import ExitCode


@click.command("validate")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@template_options
@json_option
@pass_context
def validate_command(context: CommandContext, /, file: Path, as_json: bool, **placeholders: Any) -> None:
    """Say whether FILE would be taken: by the public JSON schemas, and by IoT Hub, edgeAgent and edgeHub themselves.

    The two disagree in both directions, so each answers for itself; exit code 1 where either refuses. A layer is
    outside the schemas, and so is a patch of a twin: "ok" is null then. A template is judged with its placeholders
    filled in; what stands in a string without a value is not judged. FILE may be - for stdin.

    \b
    Example: slipway manifest validate deployment.json
    """
    content = read_content(file)
    name = "" if str(file) == "-" else file.name
    report = validate(
        content, wiring.open_deployment_schemas(), name=name, values=values_for(file, content, placeholders)
    )
    context.result({"file": str(file), **report.to_wire()}, as_json=as_json, text=lambda: _words(file, report))
    if not report.is_ok:
        raise SystemExit(int(ExitCode.FAILED))


def _words(file: Path, report: Report) -> str:
    what = f"{report.kind} template" if report.is_template else report.kind
    lines = [f"{file} ({what})"]
    for name, verdict in (("schema", report.schema), ("runtime", report.runtime)):
        lines.append(f"{name:8} {_said(verdict)}")
        lines += [line for problem in verdict.problems for line in _told(report, problem)]
    if report.combined.is_ok is False and report.schema.is_ok:
        lines.append("Tools that use the combined schema 2.0 would refuse it:")
        lines += [line for problem in report.combined.problems for line in _told(report, problem)]
    if report.warnings:
        lines.append("Taken, but look again:")
        lines += [line for warning in report.warnings for line in _told(report, warning)]
    if report.unfilled:
        lines.append(f"Placeholders without a value: {', '.join(report.unfilled)}")
    if report.twins:
        most = report.twins[0].to_wire()["limitBytes"]
        sizes = ", ".join(f"{size.module} {size.size_bytes:,}" for size in report.twins)
        lines.append(f"Bytes of desired properties, of {most:,} each: {sizes}")
    return "\n".join(lines)


def _said(verdict: Verdict) -> str:
    if verdict.is_ok is None:
        return "has no say"
    count = len(verdict.problems)
    return "takes it" if verdict.is_ok else f"refuses it: {count} problem{'s' if count > 1 else ''}"


def _told(report: Report, problem: Problem) -> list[str]:
    code = f" ({problem.code})" if problem.code else ""
    lines = [f"  line {report.line(problem.path)}: {problem.reason}{code}", f"    at {problem.place}"]
    return [*lines, f"    {problem.mend}"] if problem.mend else lines
