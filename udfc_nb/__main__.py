"`python -m udfc_nb` is the command `udfc`."
import sys
from udfc_nb.app.cli import main

if __name__ == '__main__': sys.exit(main())
