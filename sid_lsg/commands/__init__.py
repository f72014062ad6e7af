"""The commands of the command line: each validates its options, calls other wings and reports.

The parameters of a command's function are its options. Large libraries are imported when it is
called.

May import every wing.
"""
