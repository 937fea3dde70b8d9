"""Searches for the student that best distils a teacher: python search.py +experiment=demo"""

from kdnas.endings import listen

listen()  # Ctrl-C may come during the imports below, which take a while

from omegaconf import DictConfig

from kdnas.command import command


@command("search")
def main(cfg: DictConfig) -> dict[str, float]:
    from kdnas.runner import run

    return run(cfg)


if __name__ == "__main__":
    main()
