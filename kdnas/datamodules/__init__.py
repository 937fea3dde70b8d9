"""Data modules: each reads a dataset, tokenizes it once and batches it by length."""

from kdnas.datamodules.labelled import LabelledDataModule
from kdnas.datamodules.masking import Masking
from kdnas.datamodules.synthetic import SyntheticNLI
from kdnas.datamodules.text import TextDataModule

__all__ = ["LabelledDataModule", "Masking", "SyntheticNLI", "TextDataModule"]
