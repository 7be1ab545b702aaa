"""AUTOMATIC1111 asks this file for command-line options before it loads anything else.

It stands alone: at that time neither the extension's packages nor torch can be imported.
"""


def preload(parser):
    parser.add_argument(
        "--concept-erasure-profile",
        metavar="NAME",
        help="safety profile of Concept Erasure for every generation; no setting and no API request takes it off",
    )
    parser.add_argument("--concept-erasure-dir", metavar="FOLDER", help="folder of erasures and safety profiles")
