"""How good generated transitions are, against real rows of the same label that the generator never saw.

Every number is to be read beside two others: the same function of real rows against other real rows (the floor), and
of real rows of the other label (the ceiling). `report.compare` and `report.evaluate` compute all of them.
"""
