"""Pages of the site as HTML without Quarto: nbconvert, with the elements and classes that Quarto makes, and those rules
of its theme that decide about widths and grounds. Nothing is fetched from elsewhere, so formulas stand there as they
are written."""
import base64, re
from html import escape
import yaml
from jinja2 import DictLoader
from nbconvert import HTMLExporter
from nbformat import from_dict

THEME = '''
*,::before,::after { box-sizing: border-box }
body { margin: 0; font: 17px/1.5 system-ui, sans-serif; background: #fff; color: #212529 }
body.quarto-dark { background: #222; color: #fff }
a { color: #0f766e } body.quarto-dark a { color: #00bc8c }
pre, code { font: .875em ui-monospace, monospace } pre code { font-size: inherit }
pre { margin: 0 0 1rem; overflow: auto; padding: .4em } pre.sourceCode code { white-space: pre-wrap }
img.img-fluid { max-width: 100%; height: auto } figure { margin: 0 0 1rem }
table { border-collapse: collapse } table.table { width: 100%; margin-bottom: 1rem } td, th { padding: .5rem }
main { max-width: 850px; margin: auto; padding: 0 1rem }
'''
PAGE = '''{%- extends 'base/display_priority.j2' -%}
{%- block header -%}<!doctype html><html lang="en"><head><meta charset="utf-8">
<title>{{ resources.front.title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{{ resources.rules }}</style>
<style>{{ resources.css }}</style></head><body class="quarto-light"><main class="content" id="quarto-document-content">
<header id="title-block-header" class="quarto-title-block default"><h1 class="title">{{ resources.front.title }}</h1>
<div><div class="description">{{ resources.front.description or '' }}</div></div></header>{%- endblock -%}
{%- block footer -%}</main></body></html>{%- endblock -%}
{%- block markdowncell -%}{{ cell.source | markdown2html | quarto }}{%- endblock -%}
{%- block codecell -%}<div class="cell"
    {%- if cell.options.label %} id="{{ cell.options.label }}"{% endif %}>{{ super() }}</div>{%- endblock -%}
{%- block input -%}{%- if cell.options.echo is not false -%}<div class="sourceCode cell-code"><pre
    class="sourceCode python code-with-copy"><code class="sourceCode python">{{ cell.shown_source | e }}</code></pre>
    </div>{%- endif -%}{%- endblock -%}
{%- block outputs -%}{%- if cell.options.output is not false -%}{{ super() }}{%- endif -%}{%- endblock -%}
{%- block stream -%}<div class="cell-output cell-output-{{ output.name }}"><pre><code>{{
    output.text | ansi2html }}</code></pre></div>{%- endblock -%}
{%- block error -%}<div class="cell-output cell-output-error"><pre><code>{{ output.evalue | e }}</code></pre></div>
{%- endblock -%}
{%- block execute_result -%}<div class="cell-output cell-output-display">{% block data_priority scoped %}{{ super() }}
    {% endblock %}</div>{%- endblock -%}
{%- block display_data -%}<div class="cell-output cell-output-display">{{ super() }}</div>{%- endblock -%}
{%- block data_svg -%}{{ output.data['image/svg+xml'] | encoded | figure('svg+xml', cell.options) }}{%- endblock -%}
{%- block data_png -%}{{ output.data['image/png'] | figure('png', cell.options) }}{%- endblock -%}
{%- block data_html -%}{{ output.data['text/html'] }}{%- endblock -%}
{%- block data_markdown -%}{{ output.data['text/markdown'] | markdown2html | quarto }}{%- endblock -%}
{%- block data_text -%}<pre><code>{{ output.data['text/plain'] | ansi2html }}</code></pre>{%- endblock -%}
{%- block data_widget_view -%}<script type="application/vnd.jupyter.widget-view+json">{{
    output.data['application/vnd.jupyter.widget-view+json'] | json_dumps }}</script>{%- endblock -%}
'''


def quarto(html):
    "HTML of Markdown with Quarto's classes; formulas as its own elements."
    html = html.replace('<table>', '<table class="caption-top table">')
    html = re.sub(r'\$\$(.+?)\$\$', r'<span class="math display">\\[\1\\]</span>', html, flags=re.S)
    return re.sub(r'\{target=[^}]*\}', '', html).replace('&#182;', '')


def figure(data, kind, options):
    "A saved picture, with the texts that the cell gives it."
    caption = options.get('fig-cap') and f'<figcaption>{escape(options["fig-cap"])}</figcaption>'
    return (f'<figure class="figure"><p><img src="data:image/{kind};base64,{data}" class="img-fluid figure-img" '
        f'alt="{escape(options.get("fig-alt", ""))}"></p>{caption or ""}</figure>')


def options(cell):
    "What Quarto reads at the head of a cell."
    head = '\n'.join(o[2:].strip() for o in ''.join(cell['source']).splitlines() if o.startswith('#|'))
    return yaml.safe_load(head) or {}


def front(nb):
    "The front matter of a page that nbdev made."
    first = nb['cells'][0]
    return yaml.safe_load(''.join(first['source']).strip().strip('-')) if first['cell_type'] == 'raw' else {}


EXPORTER = HTMLExporter(extra_loaders=[DictLoader({'page.html.j2': PAGE})], template_file='page.html.j2',
    filters=dict(quarto=quarto, figure=figure, encoded=lambda text: base64.b64encode(text.encode()).decode()))


def page(nb, css):
    "A page as HTML."
    nb = from_dict(nb)
    told = front(nb)
    nb.cells = [c for c in nb.cells if c.cell_type != 'raw']
    for c in nb.cells:
        c.source = ''.join(c.source)
        if c.cell_type != 'code': continue
        c.options = options(c)
        c.shown_source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
        for o in c.outputs:
            if 'text' in o: o.text = ''.join(o.text)
            for kind, value in o.get('data', {}).items():
                if isinstance(value, list): o.data[kind] = ''.join(value)
    return EXPORTER.from_notebook_node(nb, resources=dict(front=told, css=css, rules=THEME))[0]
