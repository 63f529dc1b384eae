"""contseg: class-incremental continual semantic segmentation, every method, one grid, one table.

The repository is the package: ``contseg.methods`` what is optimised, ``contseg.datasets`` what each step sees,
``contseg.benchmark`` how it is run, ``contseg.run_benchmark`` the command line.
"""

__version__ = "0.1.0"  # pyproject.toml and CITATION.cff say the same, under test
