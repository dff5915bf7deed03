"""Gather the pages of the documentation site in site/source, which mkdocs.yml builds.

    python tools/site.py && mkdocs build        # scripts/docs does both

The pages are those of docs/, then LOG.md, CHANGELOG.md and CONTRIBUTING.md, and one page of the API reference for
`memlm` and for each package of PACKAGES, made from their `__all__`. Nothing of memlm is imported.
"""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "memlm"
PAGES = ROOT / "site" / "source"
OUTSIDE = {"LOG.md": "log.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
PACKAGES = (
    *("session", "store", "encoders", "models", "training", "recipes"),
    *("evaluation", "reproduction", "measurement", "objectives", "data"),
)


def exported(package: str) -> tuple[str, list[str]]:
    """Return the docstring of a package and the names in its `__all__`, or of a module and its public definitions."""
    module = SOURCE / f"{package}.py"
    if package and module.is_file():
        tree = ast.parse(module.read_text(encoding="utf-8"))
        names = [n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
        return ast.get_docstring(tree) or "", [name for name in names if not name.startswith("_")]
    tree = ast.parse((SOURCE / package / "__init__.py").read_text(encoding="utf-8"))
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
    return ast.get_docstring(tree) or "", [name for value in lists for name in ast.literal_eval(value)]


def public_page() -> str:
    """Return the page of the names that `import memlm` offers."""
    _, names = exported("")
    parts = ["# memlm\n\nThe public names. Each is imported when it is first used.\n"]
    parts += [f"::: memlm.{name}\n" for name in sorted(names, key=str.lower) if not name.startswith("__")]
    return "\n".join(parts)


def package_page(package: str) -> str:
    """Return the page of a package: its docstring, and its names that the page of `memlm` does not show."""
    public, (docstring, names) = set(exported("")[1]), exported(package)
    shown = [name for name in names if name in public]
    parts = [f"# memlm.{package}\n\n{docstring}\n"]
    if shown:
        links = ", ".join(f"[`{name}`](index.md#memlm.{name})" for name in shown)
        parts.append(f"On the page of [`memlm`](index.md): {links}.\n")
    parts += [f"::: memlm.{package}.{name}\n" for name in names if name not in public]
    return "\n".join(parts)


def outside_page(name: str) -> str:
    """Return a page that does not lie in docs/, with its links made to fit."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


def links_in(page: Path, text: str) -> str:
    """Return the text of a page, with links to pages outside docs/ leading to their copies."""
    up = "../" * (len(page.relative_to(PAGES).parts) - 1)
    for name, target in OUTSIDE.items():
        text = re.sub(rf"\]\((?:\.\./)*{re.escape(name)}", f"]({up}{target}", text)
    return text


def main() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(DOCS, PAGES, ignore=shutil.ignore_patterns("journals", "*.yml"))
    (PAGES / "api").mkdir()
    made = {page: outside_page(name) for name, page in OUTSIDE.items()} | {"api/index.md": public_page()}
    made |= {f"api/{name}.md": package_page(name) for name in PACKAGES}
    for page, text in made.items():
        (PAGES / page).write_text(text, encoding="utf-8")
    for page in PAGES.rglob("*.md"):
        page.write_text(links_in(page, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
