// What every client script shares: markers, checks, and what the simulated model witnessed.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import path from 'node:path';

export const URL_ = process.env.MODEL_URL ?? 'http://127.0.0.1:8765';
export const PROMPT = 'Create a schedule: review on 2026-03-02 at 15:00.';
let sessions = process.pid * 1000;
const checks = [];

/** Markers of one session: each call gives the next one. */
export function session() {
  const tag = (sessions++).toString(16).padStart(10, '0').slice(-10);
  let number = 0;
  return () => `#m${tag}-${(++number).toString(16).padStart(6, '0')}`;
}

/** What the simulated model says about the turn of a marker. */
export async function witnessed(marker) {
  const answer = await fetch(`${URL_}/lab/turns/${encodeURIComponent(marker)}`);
  return answer.json();
}

/** Assert that each turn was shown all turns before it, and nothing else. */
export async function positions(...markers) {
  for (const [at, marker] of markers.entries()) {
    const { read } = await witnessed(marker);
    assert(read?.position === at, `${marker} was shown ${read?.position} turns, not ${at}`);
    assert(read.foreign.length === 0 && read.half.length === 0, JSON.stringify(read));
  }
}

export function assert(holds, said) {
  if (!holds) throw new Error(said ?? 'assertion failed');
}

export function check(tried, run) {
  checks.push([tried, run]);
}

function versionOf(name) {
  const root = path.join(process.cwd(), 'node_modules', name, 'package.json');
  return JSON.parse(readFileSync(root, 'utf8')).version;
}

export async function run(client, name) {
  let failures = 0;
  for (const [tried, function_] of checks) {
    let note = '';
    try {
      const late = new Promise((_, no) => setTimeout(() => no(new Error('took 60 s')), 60_000).unref());
      await Promise.race([function_(), late]);
    } catch (error) {
      failures += 1;
      note = `${error.name}: ${error.message}`.slice(0, 400);
      console.error(error);
    }
    const result = note ? 'failed' : 'passed';
    console.log(JSON.stringify({ client, version: versionOf(name), tried, result, note }));
  }
  process.exit(Math.min(failures, 100));
}
