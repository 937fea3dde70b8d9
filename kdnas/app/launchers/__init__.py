"""Hydra launchers with which a job that dies does not affect the others.

Jobs report their results to the study. The launchers return when every job has ended, with a FAILED `JobReturn` for
each job that died or failed, and never raise an exception that would lose the other jobs' returns.
"""
