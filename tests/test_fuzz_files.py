"""Two hundred damaged files of each form; `python fuzz/files.py` reads ten thousand. Twenty killed writers; `python
fuzz/torture.py` kills two hundred."""
import subprocess, sys
from pathlib import Path
FUZZ = Path(__file__).parents[1]/'fuzz'
sys.path.insert(0, str(FUZZ))
import files

def test_damaged_files(): said = []; assert files.main(200, 0, said.append) == 0, '\n'.join(said)

def test_killed_writers():
    "In a process of its own: a fork of one in which autograd has threads cannot refine."
    done = subprocess.run([sys.executable, FUZZ/'torture.py', '20', '0'], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and 'wrong: 0' in done.stdout, done.stdout+done.stderr[-2000:]
