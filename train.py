"""Distils or pre-trains one architecture in full, or fine-tunes what was distilled: python train.py +experiment=demo"""

from kdnas.base.signals import listen

listen()  # Ctrl-C may come during the imports below, which take a while

from omegaconf import DictConfig

from kdnas.app.command import command


@command("train")
def main(cfg: DictConfig) -> dict[str, float]:
    from kdnas.app.run import run

    return run(cfg)


if __name__ == "__main__":
    main()
