"""GLUE results as papers print them: a row a model, a column a task, averages over tasks, deviations over seeds."""
