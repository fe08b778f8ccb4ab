"""Report: the run as one HTML page."""

from __future__ import annotations

from workflows.engine.stage import Context, Result, Stage, StageConfig


class Config(StageConfig):
    """The report has no settings."""


class ReportStage(Stage[Config]):
    """Report: the run as one HTML page."""

    config_type = Config
    version = 2
    seeded = False
    reads_all = True

    def run(self, config: Config, context: Context) -> Result:
        """Writes report/index.html, one row for the one page."""
        from workflows.report import write_report  # matplotlib takes a second that no other command should pay

        context.log(f"report: {write_report(context.run)}")
        return Result(rows_in=1, rows_out=1)
