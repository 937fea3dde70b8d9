"""What gets installed; all other metadata is in setup.cfg, which cannot combine found packages with a mapped folder."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["kdnas*", "hydra_plugins*"]), "kdnas.conf"],
    package_dir={"kdnas.conf": "conf"},  # conf/ stays at the top of the repository
    package_data={"kdnas.conf": ["**/*.yaml"]},
)
