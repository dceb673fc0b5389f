"""How many instructions a buffer takes: the same on a busy machine and on an idle one.

``python -m benchmarks.instructions`` runs the hot paths under valgrind's callgrind and compares
them with ``baseline.json``; ``--update`` renews that file.
"""
