"""Two hundred damaged files of each form; `python fuzz/files.py` reads ten thousand. Twenty killed writers; `python
fuzz/torture.py` kills two hundred."""
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parents[1]/'fuzz'))
import files, torture

def test_damaged_files(): said = []; assert files.main(200, 0, said.append) == 0, '\n'.join(said)

def test_killed_writers(): said = []; assert torture.main(20, 0, said.append) == 0, '\n'.join(said)
