"""Model families: what differs between them; everything else asks `family_of(config)`."""

from kdnas.models.families import known  # noqa: F401 - to register
from kdnas.models.families.base import Family, architecture_of, family_of, register

__all__ = ["Family", "architecture_of", "family_of", "register"]
