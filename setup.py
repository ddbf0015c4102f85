"Installs the package; everything that is specific to it is read from settings.ini."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

top = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(top/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

def words(key): return cfg.get(key, '').split()

statuses = ['Planning', 'Pre-Alpha', 'Alpha', 'Beta', 'Production/Stable', 'Mature', 'Inactive']
status = int(cfg['status'])
lib_name, lib_path = cfg['lib_name'], cfg['lib_path']
readme = top/'README.md'

setup(
    name=lib_name,
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl']},
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        f'Development Status :: {status} - {statuses[status - 1]}',
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        'Programming Language :: Python :: 3',
        'Typing :: Typed',
    ],
    packages=find_packages(include=[lib_path, f'{lib_path}.*']),
    package_data={lib_path: ['py.typed', '*.pyi', '*.safetensors']},
    include_package_data=False,
    python_requires='>=' + cfg['min_python'],
    install_requires=words('requirements'),
    extras_require={
        'dev': words('dev_requirements') + words('onnx_requirements') + words('widgets_requirements'),
        'onnx': words('onnx_requirements'),
        'widgets': words('widgets_requirements'),
    },
    entry_points={
        'console_scripts': words('console_scripts'),
        'nbdev': [f'{lib_path}={lib_path}._modidx:d'],
    },
    zip_safe=False,
)
