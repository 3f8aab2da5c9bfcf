"""MindIR's numbering of element types."""

DTYPE_BY_NUMBER = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    17: "float64",
}
"""Element types by number, named as in numpy; bfloat16, strings and complex numbers are not supported."""

NUMBER_BY_DTYPE = {name: number for number, name in reversed(DTYPE_BY_NUMBER.items())}
