"""python -m certtrain"""

from certtrain.cli import main

main()
