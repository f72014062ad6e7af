"""The commands of the command line: each parses its options, calls other wings and reports.

A command's signature is its command line. Heavy libraries are imported when it is called.

May import every wing.
"""
