"""Prints and writes a table of results; its first word says which.

python evaluate.py glue teacher.label=<label>
python evaluate.py proxy +experiment=minilm
"""

from kdnas.app.console import evaluate

if __name__ == "__main__":
    evaluate()
