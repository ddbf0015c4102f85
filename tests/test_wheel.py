"The wheel that pip builds: what a stranger gets, and that it works without this folder."
import os, subprocess, sys, zipfile
from pathlib import Path
import pytest

TOP = Path(__file__).resolve().parents[1]


def run(*argv, **kw):
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=600, **kw)
    assert done.returncode == 0, done.stdout+done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built out of a copy of what git knows, so that nothing that lies about here gets in."
    folder = tmp_path_factory.mktemp('wheel')
    files = run('git', '-c', 'safe.directory=*', 'ls-files', '-co', '--exclude-standard', 'udfc_nb', 'setup.py',
        'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in', cwd=TOP).split('\n')
    for name in filter(None, files):
        if not (TOP/name).is_file(): continue
        (folder/'source'/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/'source'/name).write_bytes((TOP/name).read_bytes())
    run(sys.executable, '-m', 'pip', '--disable-pip-version-check', 'wheel', '-q', '--no-input', '--no-deps', '-w',
        folder, folder/'source')
    return next(folder.glob('*.whl'))


def test_every_python_can_install_it(wheel):
    assert wheel.name.endswith('-py3-none-any.whl'), 'something would have to be compiled'


def test_it_holds_the_package_and_nothing_else(wheel):
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in n}
    package = {p.relative_to(TOP).as_posix() for ending in ('py', 'pyi', 'typed', 'safetensors')
        for p in (TOP/'udfc_nb').rglob(f'*.{ending}')}
    assert inside == package
    assert {'udfc_nb/py.typed', 'udfc_nb/__init__.pyi', 'udfc_nb/__main__.py', 'udfc_nb/digits.safetensors'} <= inside


def test_what_it_says_of_itself(wheel):
    with zipfile.ZipFile(wheel) as z:
        told = {n.rpartition('/')[2]: z.read(n).decode() for n in z.namelist() if '.dist-info/' in n}
    assert 'udfc = udfc_nb.app.cli:main' in told['entry_points.txt']
    for line in ('Requires-Dist: torch>=2.6', 'Provides-Extra: widgets', 'Provides-Extra: onnx',
            'Requires-Dist: voila; extra == "widgets"', 'Requires-Python: >=3.11', '# UDFC, derived in notebooks'):
        assert line in told['METADATA'].splitlines(), line


def test_it_works_from_the_wheel(wheel, tmp_path):
    "Unpacked, in another folder: the package is that of the wheel, and the command does its work."
    with zipfile.ZipFile(wheel) as z: z.extractall(tmp_path/'site')
    env = dict(os.environ, PYTHONPATH=str(tmp_path/'site'))
    where = run(sys.executable, '-c', 'import udfc_nb; print(udfc_nb.__file__)', cwd=tmp_path, env=env).strip()
    assert Path(where) == tmp_path/'site'/'udfc_nb'/'__init__.py'
    said = run(sys.executable, '-m', 'udfc_nb', 'compress', 'udfc_nb.data.digits:digits_net', '--input-shape',
        '1,1,8,8', '--bits', '4', '--recipe', 'prune', '--output', 'small.safetensors', '--quiet', cwd=tmp_path,
        env=env)
    assert 'small.safetensors' in said and (tmp_path/'small.safetensors').stat().st_size < 150_000
