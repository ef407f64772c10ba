import assert from 'node:assert/strict'
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { cp, mkdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createFolder } from './harness.ts'

const BIN = fileURLToPath(
  new URL('../../bin/bluesky-backups.js', import.meta.url)
)

/** An older Node.js of this machine, if there is one. */
const OLD_NODE = ['/usr/bin/node', '/usr/local/bin/node'].find((path) => {
  const { status, stdout } = spawnSync(path, ['--version'])
  return status === 0 && Number(/^v(\d+)/.exec(String(stdout))?.[1]) < 24
})

describe('bin', () => {
  const resources = new AsyncDisposableStack()
  let folder: string
  const children: ChildProcess[] = []

  before(async () => {
    folder = resources.use(await createFolder()).path
  })

  after(async () => {
    for (const child of children) child.kill('SIGKILL')
    await resources.disposeAsync()
  })

  const start = (
    argv: string[],
    {
      node = process.execPath,
      bin = BIN,
      environment = {},
    }: {
      node?: string
      bin?: string
      environment?: Record<string, string>
    } = {}
  ) => {
    const child = spawn(node, [bin, ...argv], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {
        PATH: process.env['PATH'],
        HOME: folder,
        BLUESKY_BACKUPS_DATA_FOLDER: join(folder, 'data'),
        BLUESKY_BACKUPS_PORT: '0',
        ...environment,
      },
    })
    children.push(child)
    const output = { stdout: '', stderr: '' }
    for (const name of ['stdout', 'stderr'] as const) {
      child[name].setEncoding('utf8')
      child[name].on('data', (text: string) => {
        output[name] += text
      })
    }
    const closed = once(child, 'close')
    return {
      child,
      output,
      /** Waits until text was printed. */
      async until(pattern: RegExp) {
        while (!pattern.test(output.stdout + output.stderr)) {
          if (child.exitCode !== null) {
            throw new Error(`ended: ${output.stdout}${output.stderr}`)
          }
          await new Promise((resolve) => setTimeout(resolve, 10))
        }
      },
      async ended() {
        const [code, signal] = (await closed) as [number | null, string | null]
        return { code, signal, ...output }
      },
    }
  }

  it('refuses a proxy that is none, and does not repeat its password', async () => {
    const { code, stdout, stderr } = await start(['whoami'], {
      environment: { HTTPS_PROXY: 'socks5://user:secret@127.0.0.1:9' },
    }).ended()
    assert.equal(code, 2)
    assert.match(stderr, /error: HTTPS_PROXY is not the URL of an HTTP proxy/)
    assert.doesNotMatch(stdout + stderr, /secret/)
  })

  it('asks an upload service through the proxy, and says so where that fails', async () => {
    const { code, stderr } = await start(
      ['login', 'a@example.com', '--upload-service-url', 'http://up.test'],
      { environment: { HTTP_PROXY: 'http://127.0.0.1:9' } }
    ).ended()
    assert.equal(code, 1)
    assert.match(stderr, /http:\/\/up\.test.*HTTP_PROXY names.*NO_PROXY/)
  })

  it('runs a command and ends with its code', async () => {
    const [whoami, wrong] = await Promise.all([
      start(['whoami', '--json']).ended(),
      start(['frobnicate']).ended(),
    ])
    assert.equal(whoami.code, 0, whoami.stderr)
    assert.equal(whoami.stderr, '')
    const { agent, home } = JSON.parse(whoami.stdout)
    assert.match(agent, /^did:key:/)
    assert.equal(home, join(folder, '.config', 'bluesky-backups'))
    assert.equal((await stat(join(home, 'agent.json'))).mode & 0o777, 0o600)
    assert.equal(wrong.code, 2)
  })

  it('serves until it is told to stop', async () => {
    const serve = start(['serve'])
    await serve.until(/\nkey .*\n/)
    const { stderr } = serve.output
    assert.match(stderr, /^URL +http:\/\/localhost:\d+\/\nservice +did:web:/)
    assert.match(stderr, /\nagent +did:key:.*\ndata +\/.*\/data\n/)
    assert.match(stderr, /\nkey +.*service.key \(made just now\)\n/)
    const url = /http:\S+/.exec(stderr)?.[0] ?? ''
    const info = (await (await fetch(url)).json()) as { name: string }
    assert.equal(info.name, 'bluesky-backups')
    // What reaches both a program and its starter may come twice.
    serve.child.kill('SIGINT')
    serve.child.kill('SIGINT')
    const { code, stdout } = await serve.ended()
    assert.equal(code, 0)
    for (const line of stdout.split('\n').filter(Boolean)) {
      assert.equal(typeof JSON.parse(line).level, 'number')
    }
  })

  it('prints one object and keeps the key', async () => {
    const serve = start(['serve', '--json'])
    await serve.until(/^\{.*\}\n/)
    const { url, did, agent } = JSON.parse(serve.output.stdout)
    assert.match(url, /^http:\/\/localhost:\d+\/$/)
    assert.match(did, /^did:web:localhost%3A\d+$/)
    assert.match(agent, /^did:key:/)
    const other = start(['serve', '--port', new URL(url).port])
    const taken = await other.ended()
    assert.equal(taken.code, 1)
    assert.match(taken.stderr, /^error: .*something else does/)
    serve.child.kill('SIGTERM')
    assert.equal((await serve.ended()).code, 0)
  })

  it('runs a network that other programs can use', async () => {
    const network = start(['network', '--account', 'alice.test:pass word'])
    await network.until(/the network runs until Ctrl-C\n/)
    const { stdout } = network.output
    const environment = Object.fromEntries(
      stdout
        .split('\n')
        .map((line) => /^export (\w+)=(.*)$/.exec(line))
        .filter((match) => match !== null)
        .map(([, name, value]) => [name, value])
    ) as Record<string, string>
    const did = /# alice.test is (did:plc:\w+)/.exec(stdout)?.[1]
    const resolved = await fetch(
      `${environment['PDS_URL']}/xrpc/com.atproto.identity.resolveHandle?handle=alice.test`
    )
    assert.deepEqual(await resolved.json(), { did })
    const plc = await fetch(
      `${environment['BLUESKY_BACKUPS_PLC_URL']}/${String(did)}`
    )
    assert.equal(plc.status, 200)
    network.child.kill('SIGINT')
    const { code, stderr } = await network.ended()
    assert.equal(code, 0, stderr)
  })

  it('ends when nobody reads what it prints', async () => {
    const command = start(['backup', 'run', '--help'])
    command.child.stdout?.destroy()
    const { code, signal } = await command.ended()
    assert.equal(signal, null)
    assert.ok(code === 0 || code === 130)
  })

  it('uses the Node.js that is installed along where the own one is old', async function () {
    if (!OLD_NODE) this.skip()
    const wrong = start(['frobnicate'], { node: OLD_NODE }).ended()
    const serve = start(['serve'], { node: OLD_NODE })
    await serve.until(/\nkey .*\n/)
    serve.child.kill('SIGTERM')
    const { code, signal } = await serve.ended()
    assert.equal(signal, null)
    assert.equal(code, 0)
    assert.equal((await wrong).code, 2)
  })

  it('says how to get a newer Node.js where none is installed along', async function () {
    if (!OLD_NODE) this.skip()
    const bin = join(folder, 'alone', 'bin', 'bluesky-backups.mjs')
    await mkdir(join(folder, 'alone', 'bin'), { recursive: true })
    await cp(BIN, bin)
    const { code, stderr } = await start([], { node: OLD_NODE, bin }).ended()
    assert.equal(code, 1)
    assert.match(stderr, /needs Node.js 24 or newer, and this is \d+\..*nodejs/)
  })
})
