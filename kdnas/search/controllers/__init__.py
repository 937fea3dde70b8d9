"""Controllers, which choose candidates: `feedback.py` is the papers' own; `conf/controller` names Optuna's."""
