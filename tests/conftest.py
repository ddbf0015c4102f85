"Options, markers and fixtures shared by all tests."
import os, shutil, subprocess, sys
from pathlib import Path
import pytest, torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(min(2, int(os.environ.get('OMP_NUM_THREADS') or 2)))

# Networks of random shape take uneven times, so there is no deadline; in CI the same examples are drawn every time.
settings.register_profile('default', deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile('ci', settings.get_profile('default'), derandomize=True)
settings.load_profile('ci' if os.environ.get('CI') else 'default')

TOP = Path(__file__).resolve().parents[1]
MARKERS = dict(slow='takes more than some seconds', gpu='needs a CUDA device',
               data='measures on the networks and images of ../shared/data (or $UDFC_DATA)')


def pytest_addoption(parser):
    for name, meaning in MARKERS.items():
        parser.addoption(f'--run-{name}', action='store_true', help=f'also run the tests marked {name}: {meaning}')


def pytest_configure(config):
    for name, meaning in MARKERS.items(): config.addinivalue_line('markers', f'{name}: {meaning}')


def pytest_collection_modifyitems(config, items):
    "A marked test runs only when its option is given."
    for item in items:
        for name in MARKERS:
            if name in item.keywords and not config.getoption(f'--run-{name}'):
                item.add_marker(pytest.mark.skip(reason=f'marked {name}: run with --run-{name}'))
        if 'gpu' in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason='no CUDA device'))


@pytest.fixture(scope='session')
def data_dir():
    "The folder with the measured networks and images, or a skip that says where it was looked for."
    path = Path(os.environ.get('UDFC_DATA') or TOP.parent/'shared'/'data')
    if not path.is_dir(): pytest.skip(f'no data folder at {path}; set UDFC_DATA to the folder that holds it')
    return path


@pytest.fixture(autouse=True)
def seeded():
    "Every test starts from the same random state."
    torch.manual_seed(0)


QUARTO = '''#!/bin/sh
echo "$@" >> quarto.log
[ "$1" = render ] && mkdir -p _docs && echo ok > _docs/index.html
exit 0
'''


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The folder `_proc` of a copy of the project in which the site was built, by a Quarto that does nothing."
    top = tmp_path_factory.mktemp('site')/'udfc_nb'
    shutil.copytree(TOP, top, symlinks=True,
        ignore=shutil.ignore_patterns('.git', '.venv', '.*cache*', '_proc', '_docs', '__pycache__', '.hypothesis',
        '*.egg-info', 'build', 'dist'))
    (info := top/'udfc_nb-0.dist-info').mkdir() # nbdev makes links to what is registered as installed
    (info/'METADATA').write_text('Metadata-Version: 2.1\nName: udfc_nb\nVersion: 0\n')
    (info/'entry_points.txt').write_text('[nbdev]\nudfc_nb = udfc_nb._modidx:d\n')
    (bin := top.parent/'bin').mkdir(); (bin/'quarto').write_text(QUARTO); (bin/'quarto').chmod(0o755)
    own = Path(sys.executable).parent
    env = dict(os.environ, PATH=os.pathsep.join(map(str, [bin, own, os.environ['PATH']])), PYTHONPATH=str(top),
        OMP_NUM_THREADS='1', MPLBACKEND='agg')
    done = subprocess.run([sys.executable, top/'.ci'/'site'], cwd=top, env=env, capture_output=True, text=True,
        timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return top/'_proc'
