"""How results are shown: tables, pages, figures."""
