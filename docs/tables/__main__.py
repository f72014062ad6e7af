"""Renew the tables."""

from docs.tables import FILES, renewed

for file in FILES:
    file.write_text(renewed(file.read_text()))
