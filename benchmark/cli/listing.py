"""The lists of ``contseg list``: methods, data sets, scenarios, backbones, protocols, configs, published results."""

from __future__ import annotations

import typing
from collections.abc import Callable
from itertools import takewhile

from tabulate import tabulate

from contseg.benchmark.cli.arguments import packaged
from contseg.benchmark.plan.config import TrainConfig
from contseg.benchmark.plan.model_config import BACKBONES
from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.datasets.scenario import DOMAIN_TASKS, RELEASED, SETUPS, TASKS, known_orders, known_tasks, other_names
from contseg.methods.code import came_from, is_ours
from contseg.methods.ranges import search
from contseg.methods.registry import REQUIRED, Entry, addons, methods


def _methods(long: bool) -> str:
    return "\n".join(
        [
            "",
            *_entries(methods(), long),
            "",
            "add-ons (after a +)",
            *_entries(addons(), long),
            *(_recipe() if long else []),
        ]
    )


def _recipe() -> list[str]:
    """Where a tuning looks for values of ``[train]``, whatever the method."""
    hints = typing.get_type_hints(TrainConfig, include_extras=True)
    spaces = {key: space for key in hints if (space := search(hints[key]))}
    return ["", *(f"every method: train.{key} of later steps   (tune: {space})" for key, space in spaces.items())]


def _entries(entries: dict[str, Entry], long: bool) -> list[str]:
    if not long:
        return [tabulate([[f"  {e.name}", e.summary, _source(e)] for e in entries.values()], tablefmt="plain")]
    lines = []
    for entry in entries.values():
        lines.append(f"  {entry.name}: {entry.summary}")
        lines.append(f"    {entry.paper or 'no paper'}; {_source(entry) or entry.origin}")
        lines.extend(
            f"    {p.name} = {'(required)' if p.default is REQUIRED else p.default}   ({p.type_name})"
            + (f"   {p.source}" if p.source else "")
            + (f"   (tune: {space})" if (space := search(p.annotation)) else "")
            for p in entry.parameters
        )
    return lines


def _source(entry: Entry) -> str:
    """Where a plugin's method comes from; "" for a built-in."""
    module = entry.factory.__module__
    return "" if is_ours(module) else came_from(module)


def _datasets(long: bool) -> str:
    from contseg.datasets.registry import known_datasets

    rows = [[f"  {name}", (cls.__doc__ or "").strip().partition("\n")[0]] for name, cls in known_datasets().items()]
    return (
        tabulate(rows, tablefmt="plain")
        + "\n  any other name: --data NAME=/folder (VOC layout with class_names.txt, ADE or Cityscapes)"
    )


def _scenarios(long: bool) -> str:
    rows = []
    for name in TASKS:
        rows.append([f"  {name}", ", ".join(known_tasks(name)), ", ".join(known_orders(name)) or "none"])
    rules = (
        "  DATA/TASK/SETUP, for example voc/15-1/overlapped; a task is BASE-INCREMENT, all sizes (10-5-5),\n"
        "  explicit labels ([1-6|9|10,11]) or 'offline'; a class order is added with @: 15-1@b, 15-1@random\n"
        f"  setups: {', '.join(SETUPS)}"
    )
    table = tabulate(rows, ["  data set", "tasks of the literature", "class orders"], tablefmt="simple")
    return "\n".join([table, rules, "", *_by_domain(), *(_other_names() if long else [])])


def _by_domain() -> list[str]:
    from contseg.datasets.registry import known_datasets

    rows = []
    for name, tasks in DOMAIN_TASKS.items():
        domains = known_datasets()[name].domains
        few = domains if len(domains) <= 4 else (*domains[:2], "...", domains[-1])
        rows.append([f"  {name}", ", ".join(tasks), f"{len(domains)}: {', '.join(few)}"])
    return [
        tabulate(rows, ["  data set", "tasks by domain", "domains"], tablefmt="simple"),
        "  DATA/TASK/domain: a step brings images of new domains and no class; the task counts domains.\n"
        f"  {RELEASED}: split as in PLOP's code, which tests later steps on images that were trained on",
    ]


def _other_names() -> list[str]:
    rows = [[f"  {n['code']}", n["theirs"], n["ours"], n["note"]] for n in other_names()]
    heads = ["  released code", "its name", "the same here", "why"]
    return ["", "  names that mean something else in released code:", "", tabulate(rows, heads, tablefmt="simple")]


def _backbones(long: bool) -> str:
    rows = [
        [f"  {name}", b.channels, " or ".join(map(str, sorted(b.rates))), "yes" if b.imagenet else "no"]
        for name, b in BACKBONES.items()
    ]
    table = tabulate(rows, ["  backbone", "channels", "output stride", "ImageNet weights"], tablefmt="simple")
    return f"{table}\n  timm:NAME: a network of timm, for example timm:convnext_tiny (timm.list_models() names them)"


def _protocols(long: bool) -> str:
    return "\n".join(f"  {p.note()}" for p in PROTOCOLS.values())


def _configs(long: bool) -> str:
    """Each with the first line of its file, or with all of its first comment."""
    rows = []
    for name, path in packaged().items():
        lines = [line.removeprefix("#").strip() for line in takewhile(lambda s: s.startswith("#"), path.open())]
        rows += [[f"  {name}", lines[0]], *(["", line] for line in lines[1:] if long)]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


LISTS: dict[str, Callable[[bool], str]] = {
    "methods": _methods,
    "datasets": _datasets,
    "scenarios": _scenarios,
    "backbones": _backbones,
    "protocols": _protocols,
    "configs": _configs,
}


def published(dataset: str, task: str, setup: str, method: str) -> str:
    """Published results of a cell, and where they disagree."""
    from contseg.benchmark.score.published import listing, load_published

    return listing(load_published(), dataset, task, setup, method)
