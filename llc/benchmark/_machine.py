"""What the figures of a benchmark depend on: the processor and the versions of libraries."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import llc
from llc import plots, progress
from llc.data.sources import printable
from llc.text import counted

RATE = "images per second, more is better"  # below bars


def cpu_fields():
    """{field: text} of the first processor in /proc/cpuinfo; {} where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {
        key.strip(): value.strip() for key, value in (line.split(":", 1) for line in lines if ":" in line)
    }


def cpu_name():
    return cpu_fields().get("model name", platform.processor() or platform.machine())


def num_cores():
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def describe(*packages):
    """{"machine", "versions"} for a report; packages: those whose versions matter."""
    machine = {"cpu": cpu_name(), "cores": num_cores(), "system": platform.platform()}
    return {"machine": machine, "versions": {name: _version(name) for name in packages}}


def first_line(report):
    """The first line of a report: processor, cores, versions."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return f"{report['machine']['cpu']}, {counted(report['machine']['cores'], 'core')}; {versions}"


def rounds(number, what):
    """Yields the rounds of a measurement from 0 on, and shows on stderr how many are done. what: its name."""
    return progress.each(range(number), number, what, unit="rounds")


def save_plot(figure, path):
    """Writes what --plot asked for, and says so. Raises UserError."""
    plots.save(figure, path, "--plot")
    print(f"{printable(path)}: the figures as bars")


def _version(name):
    if name == "llc":
        return llc.__version__  # its distribution has another name
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
