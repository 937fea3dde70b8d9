"""The classes and metrics of tasks."""
