"""The judge beside porcupine, the linearizability checker in Go, on one file in one run.

    python -m benchmarks.porcupine DIRECTORY [OPERATIONS ...]

DIRECTORY is a checkout of github.com/anishathalye/porcupine, because no other bench needs Go. The
program below reads the same ``history.jsonl`` with Go's own JSON reader and checks each session as
an object of its own, a list that is known by its length and its digest; an unanswered turn may
happen at any time, or after all others. CPU time counts, of the whole process on either side.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.histories import large_history
from benchmarks.selftest import write_lines

__all__ = ["compare"]

SIZES = (10_000, 100_000, 1_000_000)
# The search's own limit, and that of a whole process.
LIMIT_S, TIMEOUT_S = 20, 900
_MODULE = "module bench\n\ngo 1.18\n\nrequire github.com/anishathalye/porcupine v0.0.0\n"
_PROGRAM = """
package main

import (
	"bufio"; "encoding/json"; "fmt"; "math"; "os"; "strconv"; "time"
	"github.com/anishathalye/porcupine"
)

const M = 6364136223846793005

type Event struct {
	Type string; Process string; F string; Marker string; UserId string; SessionId string
	Time int64 `json:"time_ns"`
	Read *struct { Position int; Digest string }
	Markers []string
}
type Input struct { key string; hash uint64; isTurn bool }
type State struct { length int; digest uint64 }
type Output struct { known bool; state State }

func hash(s string) uint64 {
	v := uint64(len(s))
	for i := 0; i < len(s); i += 8 {
		w := uint64(0)
		for j := 0; j < 8 && i+j < len(s); j++ { w |= uint64(s[i+j]) << (8 * j) }
		v = v*M + w
	}
	v = (v ^ v>>32) * M
	return v ^ v>>29
}

func main() {
	file, _ := os.Open(os.Args[1])
	lines := bufio.NewScanner(file)
	lines.Buffer(make([]byte, 1<<20), 1<<26)
	open := map[string]int{}
	ops := []porcupine.Operation{}
	for lines.Scan() {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil { panic(err) }
		if e.Type == "invoke" {
			in := Input{e.UserId + ":" + e.SessionId, hash(e.Marker), e.F != "read"}
			open[e.Process] = len(ops)
			ops = append(ops, porcupine.Operation{Input: in, Call: e.Time, Output: Output{},
				Return: math.MaxInt64})
			continue
		}
		op := &ops[open[e.Process]]
		delete(open, e.Process)
		if e.Type != "ok" { continue }
		op.Return = e.Time
		if e.Read != nil {
			d, _ := strconv.ParseUint(e.Read.Digest, 16, 64)
			op.Output = Output{true, State{e.Read.Position, d}}
		} else if e.Markers != nil {
			s := State{}
			for _, m := range e.Markers { s = State{s.length + 1, s.digest*M + hash(m)} }
			op.Output = Output{true, s}
		}
	}
	model := porcupine.Model{
		Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
			by := map[string][]porcupine.Operation{}
			for _, o := range all { k := o.Input.(Input).key; by[k] = append(by[k], o) }
			parts := [][]porcupine.Operation{}
			for _, p := range by { parts = append(parts, p) }
			return parts
		},
		Init: func() interface{} { return State{} },
		Step: func(state, input, output interface{}) (bool, interface{}) {
			s, in, out := state.(State), input.(Input), output.(Output)
			ok := !out.known || out.state == s
			if in.isTurn { s = State{s.length + 1, s.digest*M + in.hash} }
			return ok, s
		},
	}
	limit, _ := strconv.Atoi(os.Args[2])
	fmt.Println(porcupine.CheckOperationsTimeout(model, ops, time.Duration(limit)*time.Second))
}
"""


def compare(checkout: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """Return for each size, without and with unanswered turns, what either side says and costs."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="kode-lab-porcupine-") as folder:
        home = Path(folder)
        (home / "main.go").write_text(_PROGRAM)
        (home / "go.mod").write_text(
            f"{_MODULE}\nreplace github.com/anishathalye/porcupine => {checkout.resolve()}\n"
        )
        subprocess.run(["go", "build", "-o", "judge", "."], cwd=home, check=True)  # noqa: S607
        for size in sizes:
            for share in (0.0, 0.2):
                path = home / "history.jsonl"
                count = write_lines(path, large_history(size, indeterminate=share))
                ours = [sys.executable, "-m", "kode_lab", "check", str(path)]
                go = [str(home / "judge"), str(path), str(LIMIT_S)]
                row: dict[str, Any] = {
                    "operations": count,
                    "unanswered": share,
                    "bytes": path.stat().st_size,
                }
                for name, command in (("porcupine", go), ("kode_lab", ours)):
                    said, cpu_s = _cost(command)
                    row |= {name: said, f"{name}_us": round(1e6 * cpu_s / count, 2)}
                rows.append(row)
                sys.stdout.write(json.dumps(row) + "\n")
                sys.stdout.flush()
    return rows


def _cost(command: list[str]) -> tuple[str, float]:
    """Return the first word that a command prints, and its CPU-seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(  # noqa: S603 - our own two commands
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
        said = (done.stdout or done.stderr).split()[0].rstrip(":")
    except subprocess.TimeoutExpired:
        said = f"nothing within {TIMEOUT_S} s"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return said, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    compare(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]] or list(SIZES))
