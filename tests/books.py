"What the tests read out of saved notebooks, and the browser in which they look at pages."
import json, os, re, shutil
from pathlib import Path
import pytest

TOP = Path(__file__).resolve().parents[1]
STATE, VIEW = 'application/vnd.jupyter.widget-state+json', 'application/vnd.jupyter.widget-view+json'


def notebooks(folder):
    "All notebooks of a folder, without what nbdev ignores."
    return sorted(p for p in folder.rglob('*.ipynb')
        if not any(part[0] in '._' for part in p.relative_to(folder).parts))


def read(path): return json.loads(Path(path).read_text(encoding='utf-8'))


def source(cell): return ''.join(cell['source'])


def markdown(nb): return '\n\n'.join(source(c) for c in nb['cells'] if c['cell_type'] == 'markdown')


def code(nb): return [c for c in nb['cells'] if c['cell_type'] == 'code']


def directives(cell): return dict(re.findall(r'^#\| *([\w-]+):? *(.*)$', source(cell), re.M))


def shown(cell): return [o['data'] for o in cell.get('outputs', ()) if 'data' in o]


def view_ids(nb): return [d[VIEW]['model_id'] for c in code(nb) for d in shown(c) if VIEW in d]


def widget_state(nb):
    "The saved state of a notebook's widgets, and the part of it that its views lead to."
    state, todo, seen = nb['metadata'].get('widgets', {}).get(STATE, {}).get('state', {}), view_ids(nb), {}
    while todo:
        i = todo.pop()
        if i in seen: continue
        assert i in state, f'widget {i} is shown or referred to, but its state is not saved'
        seen[i] = state[i]; todo += re.findall('IPY_MODEL_([0-9a-f]+)', json.dumps(state[i]['state']))
    return state, seen


FLAGS = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
    '--disable-component-update --disable-sync'.split())


def browser():
    "The path of a Chromium, or a skip; where UDFC_BROWSER is set, as .ci/run does, a failure."
    found = next(filter(None, map(shutil.which,
        ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)
    if found: return found
    (pytest.fail if os.environ.get('UDFC_BROWSER')
        else pytest.skip)('no Chromium on PATH; on Debian: apt install chromium')
