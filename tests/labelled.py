"""Tasks and labelled data modules for the tests."""

from kdnas.datamodules import LabelledDataModule
from kdnas.models.checkpoints import Pretrained
from kdnas.tasks import Classification, Regression
from kdnas.tasks.metrics import Pearson, accuracy


def classification(num_labels=2, labels=None, **settings):
    return Classification(num_labels, labels, **{"metrics": {"accuracy": accuracy(num_labels)}} | settings)


def regression(**settings):
    return Regression(**{"metrics": {"pearson": Pearson()}} | settings)


def load_classifier(source, num_labels, **settings):
    head = regression().head if num_labels == 1 else classification(num_labels).head
    return Pretrained(source, **settings)(head)


def labelled(path, columns, num_labels=2, labels=None, **settings):
    """A data module of a classification; of a regression where `num_labels` is 1."""
    task = regression() if num_labels == 1 else classification(num_labels, labels)
    return LabelledDataModule(task, path, columns, **settings)
