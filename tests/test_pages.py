"""Every page of the site in a browser, as wide as a phone and as a screen, light and dark. Quarto need not be there:
the HTML is nbconvert's, with the elements that Quarto makes and the site's own styles.css. Requests to other hosts are
blocked: text, tables and figures must be there without them."""
import json
import pytest
from books import FLAGS, TOP, browser, notebooks, read
from pages import page

WIDTHS, GROUNDS = (390, 1400), ('light', 'dark')
LOOK = '''() => {
  const wide = [], faint = [], mute = [], lost = []
  const scrolls = e => { for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
    if (getComputedStyle(p).overflowX !== 'visible') return true
    return false }
  const said = e => `${e.tagName.toLowerCase()}.${e.className} ${(e.textContent || '').trim().slice(0, 40)}`
  if (document.documentElement.scrollWidth > innerWidth)
    for (const e of document.querySelectorAll('main, main *'))
      if (e.getBoundingClientRect().right > innerWidth + .5 && !scrolls(e)) wide.push(said(e))
  if (document.documentElement.scrollWidth > innerWidth && !wide.length) wide.push('something')
  for (const i of document.images) { if (!i.alt.trim()) mute.push(said(i.closest('.cell') || i))
    if (!i.naturalWidth) lost.push(i.src.slice(0, 60)) }
  for (const s of document.querySelectorAll('svg'))
    if (!s.closest('[aria-label]') && !s.querySelector('title')) mute.push(said(s.parentElement))
  const parts = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number)
  const light = c => { const [r, g, b] = parts(c).map(v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4)
    return .2126*r + .7152*g + .0722*b }
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor
      if ((parts(c)[3] ?? 1) > .5) return c }
    return 'rgb(255, 255, 255)' }
  for (const e of document.querySelectorAll('main *')) {
    if (e.closest('svg, script, style, pre.sourceCode') || !e.getClientRects().length) continue
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x)
    if ((a + .05)/(b + .05) < 4) faint.push(said(e)) }
  return {wide, faint, mute, lost} }'''


def looked_at(pages):
    "(name, HTML) → (name, width, ground) → what is wrong there, by one browser."
    found = {}
    with pytest.importorskip('playwright.sync_api').sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=browser(), args=FLAGS)
        tab, errors = chromium.new_page(), []; tab.set_default_timeout(120_000) # machines differ
        tab.on('console', lambda m: errors.append(m.text) if m.type == 'error' and 'ERR_FAILED' not in m.text else None)
        tab.on('pageerror', lambda e: errors.append(str(e)))
        tab.route('**/*', lambda r: r.abort() if r.request.url.startswith('http') else r.continue_())
        for name, path in pages:
            errors.clear(); tab.set_viewport_size(dict(width=WIDTHS[0], height=844)); tab.goto(path.as_uri())
            for ground in GROUNDS:
                tab.emulate_media(color_scheme=ground)
                tab.evaluate('ground => document.body.className = "quarto-"+ground', ground)
                for width in WIDTHS:
                    tab.set_viewport_size(dict(width=width, height=844))
                    found[name, width, ground] = dict(tab.evaluate(LOOK), errors=list(errors))
        chromium.close()
    return found


@pytest.fixture(scope='module')
def found(site, tmp_path_factory):
    browser()
    folder, css, pages = tmp_path_factory.mktemp('pages'), (site/'styles.css').read_text(), []
    for i, path in enumerate(notebooks(site)):
        (at := folder/f'{i}.html').write_text(page(read(path), css), encoding='utf-8')
        pages.append((path.relative_to(site).as_posix(), at))
    return looked_at(pages)


def wrong(found, what): return {' '.join(map(str, at)): o[what][:3] for at, o in found.items() if o[what]}


def test_every_page_is_looked_at(found):
    assert len(found) == len(notebooks(TOP/'nbs'))*len(WIDTHS)*len(GROUNDS) > 400


def test_no_page_is_wider_than_the_screen(found): assert wrong(found, 'wide') == {}


def test_every_picture_says_what_it_shows(found): assert wrong(found, 'mute') == {}


def test_every_picture_is_there(found): assert wrong(found, 'lost') == {}


def test_text_stands_out_from_its_ground(found): assert wrong(found, 'faint') == {}


def test_no_page_has_errors(found): assert wrong(found, 'errors') == {}


def test_a_bad_page_is_found(tmp_path):
    browser()
    bad = ('<pre style="overflow:visible">'+'long '*99+'</pre><img src="data:,"><svg></svg>'
        '<p style="color:#ccc">faint</p><script>throw Error("broken")</script>')
    cell = dict(cell_type='markdown', id='a1', metadata={}, source=bad)
    good = dict(cell, source='# Fine\n\n'+'|a|b|\n|-|-|\n|'+'x'*300+'|1|\n')
    pages = []
    for name, c in (('bad', cell), ('good', good)):
        head = dict(c, cell_type='raw', source='---\ntitle: A\n---\n')
        nb = dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[head, c])
        (tmp_path/f'{name}.html').write_text(page(json.loads(json.dumps(nb)), (TOP/'nbs'/'styles.css').read_text()))
        pages.append((name, tmp_path/f'{name}.html'))
    found = looked_at(pages)
    for what, there in (('wide', 390), ('mute', 390), ('lost', 390), ('faint', 390), ('errors', 1400)):
        assert found['bad', there, 'light'][what] and not found['good', there, 'light'][what], what
    assert found['bad', 1400, 'dark']['wide']
