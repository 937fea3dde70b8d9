"""Distils or pre-trains one architecture in full, or fine-tunes what was distilled: python train.py +experiment=demo"""

from kdnas.app.console import train

if __name__ == "__main__":
    train()
