#!/usr/bin/env node
// Also runs on versions of Node.js that are too old for everything else: it
// looks for one that is new enough, which npm installs along on Linux.
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const OLDEST_NODE = 24
/**
 * Young objects in MiB before they are collected. By default it is up to 64,
 * and a service that moves much data through memory uses all of it.
 */
const HEAP_FLAG = '--max-semi-space-size'
const HEAP_SIZE = 8
/** Has glibc give large buffers back at once; others do not know it. */
const ENVIRONMENT = { MALLOC_MMAP_THRESHOLD_: '131072', ...process.env }
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP']

const here = fileURLToPath(import.meta.url)

if (Number(process.versions.node.split('.')[0]) >= OLDEST_NODE) {
  if (process.argv[2] === 'serve' && !isHeapLimited()) replaceProcess()
  // A checkout has the sources, a package only what was built of them.
  const source = new URL('../src/cli/main.ts', import.meta.url)
  const built = new URL('../dist/src/cli/main.js', import.meta.url)
  const entry = existsSync(source) ? source : built
  const { runProcess } = await import(entry.href)
  await runProcess(process)
} else {
  const node = findNode()
  if (node) {
    runWith(node)
  } else {
    console.error(
      `error: bluesky-backups needs Node.js ${OLDEST_NODE} or newer, and this is ${process.versions.node}; get it from https://nodejs.org, or install bluesky-backups with npm without leaving out optional dependencies`
    )
    process.exitCode = 1
  }
}

/** @returns {string | undefined} path of the Node.js that was installed along */
function findNode() {
  try {
    const manifest = createRequire(here).resolve(
      `node-${process.platform}-${process.arch}/package.json`
    )
    const path = join(dirname(manifest), 'bin', 'node')
    return existsSync(path) ? path : undefined
  } catch {
    return undefined
  }
}

function isHeapLimited() {
  const flags = [...process.execArgv, process.env.NODE_OPTIONS ?? '']
  return flags.some((flag) => flag.includes(HEAP_FLAG))
}

/** Starts again with limits of the heap, which only a start can set. */
function replaceProcess() {
  // Not there on Windows, where the service runs without limits.
  if (process.platform === 'win32' || !process.execve) return
  process.execve(
    process.execPath,
    [
      process.execPath,
      ...process.execArgv,
      `${HEAP_FLAG}=${HEAP_SIZE}`,
      ...process.argv.slice(1),
    ],
    ENVIRONMENT
  )
}

/** @param {string} node path of a Node.js that is new enough */
function runWith(node) {
  const child = spawn(
    node,
    [`${HEAP_FLAG}=${HEAP_SIZE}`, here, ...process.argv.slice(2)],
    { stdio: 'inherit', env: ENVIRONMENT }
  )
  const forward = (signal) => child.kill(signal)
  for (const signal of SIGNALS) process.on(signal, forward)
  child.once('error', (error) => {
    console.error(`error: ${node} cannot be run: ${error.message}`)
    process.exitCode = 1
  })
  child.once('exit', (code, signal) => {
    for (const each of SIGNALS) process.off(each, forward)
    if (signal) process.kill(process.pid, signal)
    else process.exitCode = code ?? 1
  })
}
