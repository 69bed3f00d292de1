"""python -m llc.serve by a real HTTP client: its answers are those of llc.Index and llc.Encoder.

The server is a process of its own. Its index has ids above 2^53, which a float cannot hold.
"""

import http.client
import io
import itertools
import json
import re
import shutil
import signal
import socket
import statistics
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from llc.evaluation.decoders import DECODERS
from llc.index.index import Index
from tests.conftest import ROOT
from tests.serve.conftest import index_images
from tests.serve.server import expected, hold, pairs, receive_all, serving
from tests.waiting import seconds

FIRST = (1 << 53) + 1  # the lowest id


def test_searches_by_id_and_code_as_the_index(server, photos):
    for id, k in itertools.product(photos.ids[::9].tolist(), (1, 7, 1000)):
        code = photos.get([id])
        answer = server.search({"id": id}, f"k={k}")
        assert answer == server.search({"code": code.tobytes().hex()}, f"k={k}")
        assert pairs(answer) == expected(photos, code, k)
        assert (answer["code"], answer["num_bits"], answer["more"]) == (code.tobytes().hex(), 20, False)
        records = photos.records([found["id"] for found in answer["neighbours"]])
        for found, file, label in zip(answer["neighbours"], records.files, records.labels.tolist()):
            assert (found["file"], found["label"]) == (file, photos.class_names[label])
            assert found["thumbnail"] == f"images/{found['id']}/thumbnail"
    assert min(photos.ids) == FIRST and len(server.search({"id": FIRST}, "k=1000")["neighbours"]) == 66


def test_searches_for_images_of_any_kind(server, photos, encoder, image_tree):
    for path in sorted((image_tree / "train/class_3").iterdir())[:6]:
        code = encoder.encode([path]).numpy()
        answer = server.search(path.read_bytes(), "k=9")
        assert (
            answer["code"] == code.tobytes().hex() == server.post("/encode", path.read_bytes()).json["code"]
        )
        assert pairs(answer) == expected(photos, code, 9)
    picture = Image.open(path).convert("RGB").resize((70, 50))
    for kind, more in (("PNG", {}), ("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("BMP", {})):
        file = io.BytesIO()
        picture.save(file, kind, **more)
        code = encoder.encode([Image.open(io.BytesIO(file.getvalue()))]).numpy()
        headers = {"Content-Type": f"image/{kind.lower()}"}
        assert server.search(file.getvalue(), headers=headers)["code"] == code.tobytes().hex()


def test_radius_and_classes_filter(server, photos):
    some_are_left_out = some_are_more = False
    for id, radius, k in itertools.product(photos.ids[::13].tolist(), (0, 3, 6, 4096), (5, 66, 67)):
        code = photos.get([id])
        lims, distances, ids = photos.range_search(code, radius)
        everything = list(zip(distances.tolist(), ids.tolist()))
        answer = server.search({"id": id}, f"radius={radius}&k={k}")
        assert pairs(answer) == everything[:k]
        assert answer["more"] == (len(everything) > k)
        some_are_more |= answer["more"]
        some_are_left_out |= len(everything) < 66
    assert some_are_more and some_are_left_out
    for names in (["class_2"], ["class_0", "class_5"], ["class_0", "class_0"]):
        query = "&".join(f"label={name}" for name in names)
        answer = server.search({"id": FIRST}, f"k=15&{query}")
        assert pairs(answer) == expected(photos, photos.get([FIRST]), 15, filter=names)
        assert {found["label"] for found in answer["neighbours"]} == set(names)
    refused = server.post("/search?label=class_22", {"id": FIRST})
    assert refused.status == 422 and "did you mean class_2?" in refused.json["error"]
    typo = server.post("/search?labels=class_2", {"id": FIRST})
    assert typo.status == 422 and typo.json["error"] == (
        "'labels' is not a parameter of /search; there are k, radius, label"
    )
    assert server.post("/encode?k=2", {"id": FIRST}).json["error"].endswith("there is none")


def test_classifies_as_the_encoder(server, encoder, image_tree):
    for path in sorted((image_tree / "val").glob("*/000.*")):
        code = encoder.encode([path]).numpy().tobytes().hex()
        for decoder, k in itertools.product(DECODERS, (1, 3, 1000)):
            right = encoder.classify([path], decoder, k)
            answer = server.post(f"/classify?decode={decoder}&k={k}", path.read_bytes()).json
            assert (answer["code"], answer["decode"]) == (code, decoder)
            assert [found["label"] for found in answer["classes"]] == right.names[0]
            # float32 in JSON and back is exact
            assert torch.tensor([found["score"] for found in answer["classes"]]).equal(
                right.scores[0].float()
            )
            by_code = server.post(f"/classify?decode={decoder}&k={k}", {"code": code})
            if decoder == "class":
                assert by_code.status == 422 and "needs an image" in by_code.json["error"]
            else:
                assert by_code.json == answer
    assert (
        "expected one of class, mhd, ed, posterior"
        in server.post("/classify?decode=best", {"code": code}).json["error"]
    )


def test_tells_what_it_holds(server, photos):
    stats = server.get("/stats").json
    assert (stats["num_codes"], stats["num_bits"], stats["takes_images"]) == (66, 20, True)
    assert stats["class_names"] == [f"class_{label}" for label in range(6)]
    assert [found["name"] for found in stats["decoders"]] == ["class", "mhd", "ed", "posterior"]
    assert server.get("/health").json == {"status": "ok", "stale": None}
    id = int(photos.ids[5])
    record = server.get(f"/images/{id}").json
    assert (record["id"], record["code"]) == (id, photos.get([id]).tobytes().hex())
    assert record["file"] == photos.records([id]).files[0]
    thumbnail = server.get(f"/images/{id}/thumbnail")
    assert thumbnail.headers["content-type"] == "image/jpeg"
    small = [
        np.asarray(Image.open(file).convert("RGB").resize((5, 5), Image.Resampling.BOX), float)
        for file in (io.BytesIO(thumbnail.data), record["file"], photos.records([id + 30]).files[0])
    ]
    # JPEG changes little in the mean of so many pixels
    assert abs(small[0] - small[1]).max() < 15 < abs(small[0] - small[2]).max()


def test_answers_are_not_held_back(server):
    """Where the system joins small packets, an answer of two writes takes 40 ms on a kept connection."""
    connection, times = http.client.HTTPConnection("127.0.0.1", server.port, timeout=seconds(60)), []
    for _ in range(60):
        started = time.perf_counter()
        server.search({"id": FIRST}, "k=1", connection=connection)
        times.append(time.perf_counter() - started)
    connection.close()
    assert statistics.quantiles(times)[0] < 0.03, times  # the lower quartile: other work may slow down some


def test_the_api_describes_itself_without_a_network(server):
    described = server.get("/openapi.json").json
    assert set(described["paths"]) == {
        *("/search", "/classify", "/encode", "/stats", "/health", "/images/{id}", "/images/{id}/thumbnail")
    }
    body = described["paths"]["/search"]["post"]["requestBody"]["content"]
    assert {"application/octet-stream", "application/json"} <= set(body)
    for path in ("/", "/docs"):
        page = server.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert not re.search(rb"(src|href)=\"?(https?:)?//", page.data)
        policy = dict(
            part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in str(policy) and "http" not in str(policy) and "*" not in str(policy)
    assert b"SwaggerUIBundle" in server.get("/docs/swagger-ui-bundle.js").data


def test_head_is_as_get_without_the_body(server):
    for path in ("/", "/docs", "/stats", "/health", f"/images/{FIRST}", f"/images/{FIRST}/thumbnail"):
        # another request on the same connection would take what was sent too much for its answer
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=seconds(60))
        head, get = (server.ask(method, path, connection=connection) for method in ("HEAD", "GET"))
        connection.close()
        assert (head.status, head.data, get.status) == (200, b"", 200) and get.data
        for kept in (head, get):
            del kept.headers["date"]
        assert head.headers == get.headers and int(head.headers["content-length"]) == len(get.data)
    assert [server.ask("HEAD", path).status for path in ("/nothing", "/images/1")] == [404, 404]
    assert server.ask("HEAD", "/search").status == 405


def test_json_that_is_too_large_is_told_its_own_limit(server):
    body = b'{"id": 1%s}' % (b" " * 66_000)
    for headers in ({"Content-Type": "application/json"}, {}):
        refused = server.post("/search", body, headers)
        assert refused.status == 413
        assert refused.json["error"] == "JSON may have at most 65,536 bytes"


# ---- who may ask


@pytest.mark.parametrize(
    "host, allowed",
    [
        ("127.0.0.1:80", True),
        ("localhost", True),
        ("LOCALHOST.:8000", True),
        ("[::1]:8000", True),
        ("192.168.1.7", True),  # nobody can point an address elsewhere
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:8000", False),
        ("", False),
        ("127.1", False),  # means 127.0.0.1 to some programs
    ],
)
def test_only_its_own_names_reach_it(server, host, allowed):
    for path in ("/", "/stats", "/images/1/thumbnail", "/nothing"):
        answer = server.get(path, Host=host)
        assert (answer.status != 421) == allowed, host
    if not allowed:
        assert "is not known as" in answer.json["error"]


def test_pages_of_other_sites_get_nothing(server, photos):
    body = json.dumps({"id": FIRST})
    own = f"http://127.0.0.1:{server.port}"
    for headers, status in (
        ({"Origin": own}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"http://127.0.0.1:{server.port + 1}"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
    ):
        answer = server.post("/search", body, {"Content-Type": "application/json", **headers})
        assert answer.status == status, headers
        assert not [key for key in answer.headers if key.startswith("access-control")]
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert server.ask("OPTIONS", "/search", headers=asked).status == 403


def test_every_answer_has_the_headers_of_a_careful_server(server):
    for answer in (
        server.get("/"),
        server.get("/docs"),
        server.get("/stats"),
        server.get("/nothing"),
        server.get(f"/images/{FIRST}/thumbnail"),
        server.get("/stats", Host="evil.example"),
        server.post("/search", b"nonsense"),
        server.ask("DELETE", "/stats"),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers
        if answer.status >= 400:
            assert list(answer.json) == ["error"] and answer.json["error"]


# ---- what nobody should send


@pytest.mark.parametrize(
    "query",
    [
        "k=NaN",
        "k=0",
        "k=-1",
        "k=1001",
        "k=1e3",
        "k=",
        "k=1.5",
        "k=%00",
        "radius=-1",
        "radius=inf",
        "radius=4097",
    ],
)
def test_numbers_that_mean_nothing_are_refused(server, query):
    answer = server.post(f"/search?{query}", {"id": FIRST})
    assert answer.status == 422
    assert answer.json["error"].startswith(query.partition("=")[0] + ": ")


@pytest.mark.parametrize(
    "body, says",
    [
        ('{"code": "fffff"}', "6 hexadecimal digits"),
        ('{"code": "ffff"}', "6 hexadecimal digits"),
        ('{"code": "fffffg"}', "6 hexadecimal digits"),
        ('{"code": "ff ff f"}', "6 hexadecimal digits"),
        (
            '{"code": "\\uff11\\uff11\\uff11\\uff11\\uff11\\uff11"}',
            "6 hexadecimal digits",
        ),  # digits of another kind
        ('{"code": "ffffff"}', "padding"),
        ('{"code": 1}', "expected"),
        ('{"id": "1"}', "expected"),
        ('{"id": true}', "expected"),
        ('{"id": NaN}', "expected"),
        ('{"id": 1.0}', "expected"),
        ('{"id": -1}', "expected"),
        ('{"id": 9223372036854775807}', "expected"),
        ('{"id": 1%s}' % ("0" * 5000), "not JSON"),
        ('{"id": 1, "code": "fffff0"}', "expected"),
        ('{"id": 1, "id2": 1}', "expected"),
        ("[]", "expected"),
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[" * 60000, "not JSON"),
        ('{"id": "\ud800"}'.encode("utf-8", "surrogatepass"), "expected"),
        (b"\xff\xfe{", "not JSON"),
    ],
)
def test_json_that_means_nothing_is_refused(server, body, says):
    answer = server.post("/search", body, {"Content-Type": "application/json; charset=utf-8"})
    assert answer.status == 422 and says in answer.json["error"], answer.data


def test_ids_lead_to_records_only(server):
    for path in (
        *(
            "/images/..",
            "/images/../../etc/passwd",
            "/images/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
            "/images//etc/passwd",
        ),
        *(
            "/images/1e3",
            "/images/-1",
            "/images/9223372036854775807",
            "/images/99999999999999999999",
            "/images/0x10",
        ),
        *(
            "/images/%00",
            "/images/1%2f..%2f2",
            "/images/1/../../page.html",
            "/docs/../app.py",
            "/docs/page.html",
        ),
        *("/images/1", "/images/9007199254740992", "/images/../serve/app.py", "//etc/passwd", "/etc/passwd"),
    ):
        for whole in (path, f"{path}/thumbnail"):
            answer = server.get(whole)
            assert answer.status in (404, 422) and list(answer.json) == ["error"], (whole, answer)
    assert server.get("/images/9007199254740992").json["error"] == "the index has no id 9007199254740992"
    assert server.post("/search", {"id": 7}).status == 404


def test_bodies_that_are_no_images_are_refused(server, image_tree):
    [photo] = (image_tree / "val/class_0").glob("000.*")
    whole = photo.read_bytes()
    rng = np.random.default_rng(0)
    for body, status in (
        (b"", 422),
        (b"\0" * 1000, 415),
        (rng.bytes(100_000), 415),
        (whole[: len(whole) // 2], 415),
        ((ROOT / "README.md").read_bytes(), 415),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
        (b"GIF89a" + b"\xff" * 40, 415),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run", 415),
    ):
        answer = server.post("/search", body)
        assert answer.status == status, (body[:40], answer)
        assert answer.json["error"].startswith(("the image", "the body"))
    form = server.post("/search", b"--x\r\n\r\n--x--", {"Content-Type": "multipart/form-data; boundary=x"})
    assert form.status == 415 and "--data-binary" in form.json["error"]


def bomb(kind, width, height):
    """A small file that claims to hold width x height pixels; a PNG and a TIFF do hold them."""
    file = io.BytesIO()
    if kind in ("PNG", "TIFF"):
        compressed = {"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}
        Image.new("1", (width, height)).save(file, kind, **compressed)
        return file.getvalue()
    Image.new("L", (8, 8)).save(file, kind)
    data = bytearray(file.getvalue())
    if kind == "GIF":
        data[6:10] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    elif kind == "BMP":
        data[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    elif kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "JPEG", "TIFF"])
def test_images_of_too_many_pixels_are_refused(server, kind):
    data = bomb(kind, 20_000, 20_000)
    assert len(data) < 100_000
    answer = server.post("/search", data)
    assert answer.status == 413 and "--max_pixels" in answer.json["error"], answer


# ---- the process


def test_codes_are_enough_without_a_model(photos, tmp_path):
    bare = Index(20)
    bare.add(photos.get(photos.ids), photos.ids)
    bare.save(tmp_path / "bare.index")
    with serving(
        tmp_path / "bare.index", tmp_path, "--host=0.0.0.0", "--allowed_hosts=Box.local,other"
    ) as server:
        assert "WARNING: --host=0.0.0.0 lets other machines reach this server" in server.said
        assert "codes only" in server.said and "127.0.0.1" not in server.said
        assert server.get("/stats", Host="box.local:8000").json["takes_images"] is False
        assert server.get("/stats", Host="third").status == 421
        answer = server.search({"id": FIRST})
        assert pairs(answer) == expected(photos, photos.get([FIRST]), 10)
        assert {found["label"] for found in answer["neighbours"]} == {None}
        for path in ("/search", "/encode", "/classify"):
            refused = server.post(path, b"an image")
            assert refused.status == 501 and "--model" in refused.json["error"]
        assert server.post("/classify", {"id": FIRST}).status == 501
        assert server.get(f"/images/{FIRST}/thumbnail").status == 404


def test_takes_over_commits_and_survives_damage(photos, tmp_path):
    shutil.copytree(photos.path, tmp_path / "copy")
    with serving(tmp_path / "copy", tmp_path, "--refresh=0.05") as server:

        def wait_for(true):
            end = time.monotonic() + seconds(20)
            while not true():
                assert time.monotonic() < end
                time.sleep(0.02)

        with Index.open(tmp_path / "copy", write=True) as index:
            index.add(~index.get([FIRST]) & np.array([255, 255, 240], np.uint8), [3], files=["a\nb.png"])
            index.save()
        wait_for(lambda: server.get("/images/3").status == 200)
        assert server.search({"id": 3}, "k=1")["neighbours"][0]["file"] == "a\nb.png"
        manifest = tmp_path / "copy/index.json"
        good = manifest.read_bytes()
        manifest.write_bytes(good[: len(good) // 2])
        wait_for(lambda: server.get("/health").json["stale"])
        assert server.said.count("WARNING: the newest state cannot be served") == 1
        assert server.search({"id": 3}, "k=1")["neighbours"][0]["id"] == 3
        manifest.write_bytes(good)
        wait_for(lambda: server.get("/health").json["stale"] is None)


def test_another_index_at_its_path(photos, encoder, other_encoder, image_tree, tmp_path):
    [photo] = (image_tree / "val/class_0").glob("000.*")
    path, others = tmp_path / "served.index", index_images(image_tree / "val", other_encoder)
    others.save(tmp_path / "other_model.index")
    Index(24).save(tmp_path / "other_length.index")
    shutil.copytree(photos.path, path)
    with serving(path, tmp_path, "--refresh=0.05") as server:

        def replace(new):
            shutil.rmtree(path)
            shutil.copytree(new, path)

        def wait_for(text):
            end = time.monotonic() + seconds(30)
            while text not in str(server.get("/health").json["stale"]):
                assert time.monotonic() < end
                time.sleep(0.02)

        def check(index, model):
            code = model.encode([photo]).numpy()
            answer = server.search(photo.read_bytes(), "k=9")
            assert answer["code"] == code.tobytes().hex() and pairs(answer) == expected(index, code, 9)

        check(photos, encoder)
        replace(tmp_path / "other_length.index")
        wait_for("replaced by an index of 24 bits")
        for _ in range(10):  # it stays so for as long as that index is there
            time.sleep(0.05)
            health = server.get("/health").json
            assert health["status"] == "stale" and "of 24 bits" in health["stale"]
        check(photos, encoder)
        for new, index, model in (
            (tmp_path / "other_model.index", others, other_encoder),
            (photos.path, photos, encoder),
        ):
            replace(new)
            first = int(index.ids[0])
            end = time.monotonic() + seconds(30)
            while server.get(f"/images/{first}").status != 200:
                assert time.monotonic() < end
                time.sleep(0.02)
            wait_for("None")
            assert server.get("/health").json == {"status": "ok", "stale": None}
            check(index, model)
        assert server.said.count("of another model, which is used from now on") == 2
    with serving(path, tmp_path, "--refresh=0.05", f"--model={Index.open(path).model}") as server:
        replace(tmp_path / "other_model.index")
        wait_for("of another model than --model")
        check(photos, encoder)


def test_ctrl_c_stops_it_and_it_finishes_what_it_does(photos, tmp_path):
    with serving(photos.path, tmp_path) as server:
        body = b'{"id": %d}' % FIRST
        idle, half = server.connect(), hold(server, len(body))

        def finish():
            time.sleep(0.5)
            half.sendall(body)

        sender = threading.Thread(target=finish)
        sender.start()
        assert server.stop(signal.SIGINT) == 0
        sender.join()
        assert server.said.endswith("stopped\n")
        answer = receive_all(half)
        assert answer.startswith(b"HTTP/1.1 200 ") and b'"neighbours":[{"id":%d' % FIRST in answer
        assert receive_all(idle) == b""


def test_a_port_that_is_taken_is_said(photos, call_llc):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = call_llc("-m", "llc.serve", photos.path, f"--port={port}", check=False)
    assert done.returncode == 2
    assert f"--port={port}: cannot listen there: Address already in use" in done.stderr


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "fastapi_offline"])
def test_a_missing_package_is_said(photos, call_llc, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)  # makes its import fail
    done = call_llc("-m", "llc.serve", photos.path, check=False)
    assert done.returncode == 2
    assert (
        f"needs {module.replace('_', '-')}" in done.stderr and "pip install 'llcodes[serve]'" in done.stderr
    )


@pytest.mark.parametrize(
    "flags, says",
    [
        (["no/such.index", "--port=0"], "no/such.index"),
        (["INDEX", "--port=0", "--host=no.such.host.invalid"], "--host=no.such.host.invalid"),
        (["INDEX", "--port=0", "--images=no/such"], "--images=no/such: No such file or directory"),
        (["INDEX", "--port=70000"], "port = '70000'"),
        (["INDEX", "--timeout=nan"], "timeout = 'nan'"),
    ],
)
def test_wrong_flags_are_said(photos, call_llc, flags, says):
    done = call_llc(
        "-m", "llc.serve", *(str(photos.path) if flag == "INDEX" else flag for flag in flags), check=False
    )
    assert done.returncode == 2 and says in done.stderr
