"""Searches for the student that best distils a teacher: python search.py +experiment=demo"""

from kdnas.app.console import search

if __name__ == "__main__":
    search()
