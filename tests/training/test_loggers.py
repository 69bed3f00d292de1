"""Where the numbers of a run go: each place holds what log.jsonl holds, once, and none can stop a run."""

import csv
import dataclasses
import io
import json
import os
import sys
import threading
import time
import zlib

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util

import train_llc
from llc import recipe
from llc.errors import UserError
from llc.loggers import LOGGERS, Logger, Run, register
from llc.training import delivery
from llc.training.delivery import Deliveries
from llc.training.run_folder import RunFolder
from tests.tools.chaos import make_betons
from tests.training.test_survival import SHORT
from tests.waiting import seconds

ALL = ("tensorboard", "csv", "wandb", "mlflow")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_betons(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def command(tiny, tmp_path, monkeypatch):
    """command(*options): the arguments of a short training in tmp_path/run."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(len(os.sched_getaffinity(0))))  # one thread

    def of(*options):
        data = (f"--data.train_dataset={tiny[0]}", f"--data.val_dataset={tiny[1]}")
        return [*SHORT, *data, f"--logging.folder={tmp_path}", "--logging.name=run", *options]

    return of


@pytest.fixture
def services(tmp_path, monkeypatch):
    """wandb offline, and MLflow in a folder, with no settings but these."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import wandb

    wandb.teardown()  # it reads the environment once
    yield
    wandb.teardown()


# ---- what each place holds, read by other means than llc's


def read_log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def numbers(line):
    return {key: float(value) for key, value in line.items() if not isinstance(value, str)}


def read_csv(run):
    with open(run / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {key: text if key == "stage" else json.loads(text) for key, text in row.items() if text}
        for row in rows
    ]


def read_tensorboard(run):
    """{step: {tag: value}}, after what TensorBoard forgets; a step that comes twice fails."""
    found = {}
    for path in sorted(run.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime):
        for event in EventFileLoader(str(path)).Load():
            if event.HasField("session_log"):
                found = {step: values for step, values in found.items() if step < event.step}
            for value in event.summary.value:
                assert value.tag not in found.setdefault(event.step, {})
                found[event.step][value.tag] = float(tensor_util.make_ndarray(value.tensor))
    return found


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log format with a header of 7 bytes, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), 7, []
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no room for a header: the rest of the block is empty
            place += 32768 - place % 32768
            continue
        checksum = int.from_bytes(content[place : place + 4], "little")
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        data = content[place + 7 : place + 7 + size]
        assert checksum == zlib.crc32(bytes([kind]) + data)
        parts, place = [*parts, data], place + 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(b"".join(parts))
            parts = []


def read_wandb(run):
    """(names and ids of the runs, projects, {step: line}, the configuration, final figures)."""
    runs, lines, config, final = set(), {}, {}, {}
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for record in wandb_records(path):
            kind = record.WhichOneof("record_type")
            assert kind not in ("stats", "output", "output_raw", "environment"), "sends more than it should"
            if kind == "run":
                runs.add((record.run.run_id, record.run.display_name, record.run.project))
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if kind == "history":
                line = {
                    i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item
                }
                step = line.pop("_step")
                assert step not in lines
                lines[step] = {key: value for key, value in line.items() if not key.startswith("_")}
            if kind == "summary":
                values = {
                    i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.summary.update
                }
                final |= {key: value for key, value in values.items() if key.startswith("final/")}
    return runs, lines, config, final


def read_mlflow(run, uri):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    [experiment] = [e for e in client.search_experiments() if e.name == "birds"]
    [found] = client.search_runs([experiment.experiment_id])
    lines, final = {}, {}
    for key in found.data.metrics:
        for metric in client.get_metric_history(found.info.run_id, key):
            into = final if key.startswith("final/") else lines.setdefault(metric.step, {})
            assert key not in into
            into[key] = metric.value
    return found, lines, final


# ---- whole runs


def test_by_default_tensorboard_and_csv_hold_what_the_log_holds(finished_run):
    log = read_log(finished_run)
    assert read_csv(finished_run) == log and len(log) > 2
    found = read_tensorboard(finished_run)
    assert sorted(found) == [line["global_epoch"] for line in log]
    for line in log:
        expected = numbers(line)
        del expected["epoch"], expected["global_epoch"]
        # an event holds float32
        assert found[line["global_epoch"]] == pytest.approx(expected, rel=1e-6)


def test_each_epoch_is_everywhere_once_after_a_kill_and_a_resumption(
    command, services, tmp_path, monkeypatch
):
    run, uri = tmp_path / "run", f"file:{tmp_path}/mlruns"
    words = command(f"--logging.to={','.join(ALL)}", "--logging.project=birds", "--training.stages=codebook")
    words.append("--codebook.epochs=3")
    save = RunFolder.save_last

    def killed(folder, state, keep):
        if state["progress"]["epoch"] == 2:
            raise KeyboardInterrupt
        save(folder, state, keep)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_last", killed)
        with pytest.raises(KeyboardInterrupt):
            train_llc.main(words)
    assert len(read_log(run)) == 2  # one of them is lost, and trained again
    assert len(read_csv(run)) == len(read_tensorboard(run)) == 1
    assert read_mlflow(run, uri)[0].info.status == "KILLED"
    first = read_wandb(run)[1]
    assert list(first) == [1]
    time.sleep(1.1)  # wandb names the folder of a start by the second; other processes take longer to start

    train_llc.main([*words, f"--resume={run}"])
    log = read_log(run)
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert read_csv(run) == log
    assert sorted(read_tensorboard(run)) == [1, 2, 3]
    with open(run / "results.csv", newline="") as file:
        results = {row["metric"]: float(row["final"]) for row in csv.DictReader(file)}
    assert "codebook/top1_mhd_flip" in results

    runs, lines, config, final = read_wandb(run)
    [(_, name, project)] = runs
    assert (name, project) == ("run", "birds")
    assert lines == {line["global_epoch"]: line for line in log}
    assert config["codebook"]["epochs"] == 3 and config["codes"]["num_bits"] == 7
    assert {key.removeprefix("final/"): value for key, value in final.items()} == pytest.approx(
        results, abs=1e-6
    )

    found, lines, final = read_mlflow(run, uri)
    assert lines == {line["global_epoch"]: numbers(line) for line in log}
    assert found.info.run_name == "run" and found.info.status == "FINISHED"
    assert found.data.params["codebook.epochs"] == "3" and found.data.params["model.arch"] == "resnet18"
    assert {key.removeprefix("final/"): value for key, value in final.items()} == pytest.approx(
        results, abs=1e-6
    )


def test_nothing_but_the_log_is_written_where_nothing_is_named(command, tmp_path):
    train_llc.main(command("--logging.to=", "--training.stages=codebook", "--codebook.epochs=1"))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "log.jsonl" in names
    assert not any(name.startswith("events.") for name in names) and not names & {"log.csv", "loggers.json"}


# ---- refused at the start


def refused(words, tmp_path):
    for more in ((), ("--dry_run",)):
        with pytest.raises(UserError) as error:
            train_llc.main([*words, *more])
        assert not (tmp_path / "run").exists()
    return str(error.value)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_an_error_before_any_work(name, command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    message = refused(command(f"--logging.to=csv,{name}"), tmp_path)
    assert f"logging.to={name} needs {name}" in message and f"pip install 'llcodes[{name}]'" in message


def test_an_unknown_name_is_refused_with_the_known_ones(command, tmp_path):
    message = refused(command("--logging.to=csv,tensorbord"), tmp_path)
    assert "no 'tensorbord'; did you mean tensorboard" in message
    assert "some of tensorboard, csv, wandb, mlflow" in message


def test_wandb_without_a_key_is_an_error_that_says_what_to_do(services, command, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()
    message = refused(command("--logging.to=wandb"), tmp_path)
    assert "wandb login" in message and "WANDB_API_KEY" in message and "WANDB_MODE=offline" in message


def test_an_unusable_tracking_uri_is_an_error_that_says_what_to_do(services, command, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://there")
    message = refused(command("--logging.to=mlflow"), tmp_path)
    assert "gopher://there" in message and "MLFLOW_TRACKING_URI" in message


def test_the_plan_names_where_the_numbers_go(services, command, capsys):
    train_llc.main(command("--logging.to=csv,wandb,mlflow", "--logging.project=birds", "--dry_run"))
    said = capsys.readouterr().out
    assert "  log.csv\n" in said and "  wandb/\n" in said and "events.out" not in said
    assert "to wandb, project birds" in said and "to mlflow, project birds" in said


# ---- deliveries


def line(number, **more):
    return {"stage": "codebook", "epoch": number, "global_epoch": number, "loss": 1 / number, **more}


def config_of(*names):
    values = {
        name: kind(**({"train_dataset": "a", "val_dataset": "b"} if name == "data" else {}))
        for name, kind in recipe.sections().items()
    }
    for name in ("codebook", "instance"):
        values[name] = dataclasses.replace(values[name], epochs=1, lr=0.1)
    values["logging"] = recipe.Logging(to=names, project="birds")
    return recipe.Config.of(values)


@pytest.fixture
def named(monkeypatch):
    """named(kind): registers a logger for the time of the test."""

    def add(kind):
        monkeypatch.setitem(LOGGERS, kind.name, kind)
        return kind

    return add


def test_a_logger_that_fails_warns_once_and_gets_later_what_it_missed(named, tmp_path, capsys):
    given, written = [], threading.Semaphore(0)

    @named
    class Flaky(Logger):
        name = "flaky"
        broken = True

        def write(self, lines):
            written.release()
            if Flaky.broken:
                raise ConnectionError("no route to host\nand more")
            given.append(lines[-1]["epoch"])

        def close(self):
            given.append("closed")

    deliveries = Deliveries(tmp_path, config_of("flaky"))
    for number in (1, 2):
        deliveries.send([line(n) for n in range(1, number + 1)])
        assert written.acquire(timeout=seconds(10))
    Flaky.broken = False
    deliveries.send([line(n) for n in (1, 2, 3)])
    deliveries.close()
    assert given == [1, 2, 3, "closed"]
    said = capsys.readouterr().err
    assert said.count("warning") == 1 and "logging.to=flaky: ConnectionError: no route to host;" in said

    # a process that resumes gives it the fourth alone; one that returned to an older checkpoint, more
    for number, expected in ((4, [4, "closed"]), (2, []), (3, [3, "closed"])):
        del given[:]
        deliveries = Deliveries(tmp_path, config_of("flaky"))
        deliveries.send([line(n) for n in range(1, number + 1)])
        deliveries.close()
        assert given == expected


def test_what_cannot_be_kept_spoils_no_other_logger(named, tmp_path, capsys):
    given = []

    @named
    class Odd(Logger):
        name = "odd"

        def write(self, lines):
            self.run.memory["when"] = threading.Lock()

    @named
    class Good(Logger):
        name = "good"

        def write(self, lines):
            given.append(lines[-1]["epoch"])

    for numbers in ((1, 2), (1, 2, 3)):
        deliveries = Deliveries(tmp_path, config_of("odd", "good"))
        deliveries.send([line(n) for n in numbers])
        deliveries.close()
    assert given == [1, 2, 3]
    said = capsys.readouterr().err
    assert "logging.to=odd: what it put into run.memory" in said and "logging.to=good" not in said


def test_a_finished_run_gives_what_was_missing_when_it_is_called_again(named, command, tmp_path, capsys):
    given = []

    @named
    class Late(Logger):
        name = "late"
        broken = True

        def write(self, lines):
            if Late.broken:
                raise ConnectionError("no route to host")
            given.append(lines[-1]["global_epoch"])

        def finish(self, results):
            given.append(sorted(results)[0])

    train_llc.main(command("--logging.to=late"))
    assert "the process ends before late has taken 4 of 4 epochs" in capsys.readouterr().err and not given
    Late.broken = False
    for _ in range(2):  # the second time there is nothing left
        train_llc.main([f"--resume={tmp_path / 'run'}"])
    said = capsys.readouterr()
    assert said.out.count("is finished") == 2 and not said.err
    assert given[:4] == [1, 2, 3, 4] and [name.partition("/")[0] for name in given[4:]] == ["codebook"]


def test_a_logger_that_hangs_holds_up_no_other_and_not_the_end(named, tmp_path, monkeypatch, capsys):
    hangs = threading.Event()

    @named
    class Hanging(Logger):
        name = "hanging"

        def write(self, lines):
            hangs.wait(seconds(60))

    monkeypatch.setattr(delivery, "LAST_SECONDS", 0.3)
    deliveries = Deliveries(tmp_path, config_of("hanging", "csv"))
    deliveries.send([line(1)])
    deliveries.finish({"codebook/top1_mhd": 0.5})
    deliveries.close()
    assert read_csv(tmp_path) == [line(1)]
    assert "before hanging has taken 1 of 1 epochs; log.jsonl has all" in capsys.readouterr().err
    hangs.set()


def test_a_server_that_is_not_there_is_a_warning(services, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    delivery.check(["mlflow"])
    deliveries = Deliveries(tmp_path, config_of("mlflow", "csv"))
    for number in (1, 2):
        deliveries.send([line(n) for n in range(1, number + 1)])
    deliveries.close()
    said = capsys.readouterr().err
    assert said.count("tried again after each epoch") == 1 and "127.0.0.1" in said
    assert "before mlflow has taken 2 of 2 epochs" in said
    assert len(read_csv(tmp_path)) == 2


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"csv": 3}', '{"csv": {"epochs": "x", "memory": {}}}'])
def test_a_damaged_memory_begins_anew(text, tmp_path):
    (tmp_path / "loggers.json").write_text(text)
    deliveries = Deliveries(tmp_path, config_of("csv"))
    deliveries.send([line(1), line(2)])
    deliveries.close()
    assert [row["epoch"] for row in read_csv(tmp_path)] == [1, 2]
    assert json.loads((tmp_path / "loggers.json").read_text())["csv"]["epochs"] == 2


# ---- single loggers


def test_columns_of_a_later_stage_come_last_and_the_others_stay(tmp_path):
    logger = LOGGERS["csv"](Run(tmp_path, "run", "birds", {}, {}))
    logger.write([line(1, top1_class=0.5, compiled=False)])
    before = (tmp_path / "log.csv").read_text().splitlines()
    logger.write([line(1, top1_class=0.5, compiled=False), line(2, top1_mhd=1e-7, compiled=True)])
    after = (tmp_path / "log.csv").read_text().splitlines()
    assert before == ["stage,epoch,global_epoch,loss,top1_class,compiled", "codebook,1,1,1.0,0.5,false"]
    assert after == [before[0] + ",top1_mhd", before[1] + ",", "codebook,2,2,0.5,,true,1e-07"]


def test_a_disk_that_is_full_for_a_while_leaves_whole_events(tmp_path, monkeypatch):
    logger = LOGGERS["tensorboard"](Run(tmp_path, "run", "birds", {}, {}))
    logger.write([line(1)])

    class Full(io.FileIO):
        def write(self, content):
            super().write(content[: len(content) // 2])
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda path, mode: Full(path, mode))
        with pytest.raises(OSError):
            logger.write([line(1), line(2)])
    logger.write([line(1), line(2)])
    logger.write([line(1), line(2), line(3)])
    assert read_tensorboard(tmp_path) == {n: {"loss": pytest.approx(1 / n)} for n in (1, 2, 3)}


def test_names_that_cannot_be_registered():
    for name, problem in (("csv", "registered already"), ("a b", "expected letters"), (None, "has no name")):
        kind = type("Kind", (Logger,), {"name": name} if name else {})
        with pytest.raises(ValueError, match=problem):
            register(kind)
    assert tuple(LOGGERS) == ALL
