"README.md says what nbs/index.ipynb says, and nothing in it leads nowhere."
import importlib.machinery, importlib.util, re, shutil, subprocess, sys
from pathlib import Path
import pytest

TOP = Path(__file__).resolve().parents[1]
SCRIPT = TOP/'.ci'/'readme'
README = (TOP/'README.md').read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def script():
    loader = importlib.machinery.SourceFileLoader('readme_script', str(SCRIPT))
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader('readme_script', loader))
        loader.exec_module(module)
    finally: sys.dont_write_bytecode = before
    return module


def test_in_step_with_the_notebook():
    run = subprocess.run([sys.executable, str(SCRIPT), '--check'], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_check_notices_a_change(tmp_path):
    for name in ('.ci/readme', 'nbs/index.ipynb', 'README.md',
            *(p.relative_to(TOP).as_posix() for p in TOP.glob('index_files/*'))):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True); shutil.copy(TOP/name, tmp_path/name)
    def run(*args):
        return subprocess.run([sys.executable, str(tmp_path/'.ci'/'readme'), *args], capture_output=True, text=True)
    assert run('--check').returncode == 0
    (tmp_path/'index_files').mkdir(exist_ok=True)
    (tmp_path/'README.md').write_text(README + 'more\n'); (tmp_path/'index_files'/'old.png').write_bytes(b'')
    said = run('--check')
    assert said.returncode == 1 and 'README.md, index_files/old.png' in said.stderr
    assert run().returncode == 0
    assert (tmp_path/'README.md').read_text() == README and not (tmp_path/'index_files'/'old.png').exists()


def links(text): return [o.split('#')[0] for o in re.findall(r'\]\(([^)\s]+)\)', text) if not re.match(r'[a-z]+:', o)]


def test_links_lead_somewhere():
    assert len(links(README)) > 15
    assert [o for o in links(README) if o and not (TOP/o).exists()] == []


def test_it_is_short(): assert README.count('\n') <= 130


def test_the_picture_stands_first():
    first = next(o for o in README.splitlines() if o.startswith(('![', '[![')))
    alt, path = re.match(r'\[!\[([^]]*)\]\(([^)]*)\)\]\(\2\)$', first).groups()
    assert len(alt) > 80 and path == 'nbs/way.svg' and README.index(first) < README.index('```')


def test_what_a_reader_needs():
    for part in ('make demo', 'make test', 'pip install -e .', 'Apache-2.0', 'ICCV', 'CITATION.cff'):
        assert part in README


def test_links_are_moved_to_the_top(script):
    assert (script.relative('[a](01_x.ipynb) [b](../LICENSE) [c](https://x.org/y) [d](#e)') == '[a](nbs/01_x.ipynb) '
        '[b](LICENSE) [c](https://x.org/y) [d](#e)')
    assert script.relative('```\n[a](b)\n```') == '```\n[a](b)\n```'


CONTRIBUTING = (TOP/'CONTRIBUTING.md').read_text(encoding='utf-8')


def test_contributing_fits_a_page():
    assert CONTRIBUTING.count('\n') <= 65 and len(CONTRIBUTING.split()) <= 700
    assert [o for o in links(CONTRIBUTING) if o and not (TOP/o).exists()] == []


@pytest.mark.parametrize('text', [README, CONTRIBUTING], ids=['README', 'CONTRIBUTING'])
def test_make_has_what_is_named(text):
    targets = set(re.findall(r'^([\w-]+):', (TOP/'Makefile').read_text(), re.M))
    assert set(re.findall(r'(?:^ {4}|`)make ([\w-]+)', text, re.M)) <= targets
