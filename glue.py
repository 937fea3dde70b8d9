"""The papers' GLUE table from finished runs: python glue.py teacher.label=<label>"""

from kdnas.base.signals import listen

listen()  # Ctrl-C may come during the imports below, which take a while

from omegaconf import DictConfig

from kdnas.app.command import command


@command("glue")
def main(cfg: DictConfig) -> None:
    from kdnas.reports.glue import report

    report(cfg)


if __name__ == "__main__":
    main()
