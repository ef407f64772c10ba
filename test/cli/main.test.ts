import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import packageJson from '../../package.json' with { type: 'json' }
import { Agent, createFolder } from './harness.ts'

const COMMANDS = [
  ['login'],
  ['whoami'],
  ['space', 'create'],
  ['space', 'use'],
  ['space', 'ls'],
  ['delegate'],
  ['backup', 'run'],
  ['backup', 'ls'],
  ['backup', 'show'],
  ['backup', 'export'],
  ['backup', 'verify'],
  ['schedule'],
  ['schedules'],
  ['runs'],
  ['pause'],
  ['resume'],
  ['unschedule'],
  ['clock', 'head'],
  ['clock', 'log'],
  ['clock', 'inspect'],
  ['clock', 'advance'],
  ['clock', 'merge'],
  ['clock', 'fork'],
  ['clock', 'diverge'],
  ['status'],
  ['serve'],
  ['network'],
]

describe('the command', () => {
  let folder: Awaited<ReturnType<typeof createFolder>>
  let agent: Agent

  before(async () => {
    folder = await createFolder()
    agent = new Agent(join(folder.path, 'agent'), {})
  })

  after(() => folder[Symbol.asyncDispose]())

  for (const command of COMMANDS) {
    it(`${command.join(' ')} has help with an example, and --json`, async () => {
      const { code, stdout, stderr } = await agent.run([...command, '--help'])
      assert.equal(code, 0)
      assert.equal(stderr, '')
      assert.match(stdout, /\nExample:\n {2}\$ bluesky-backups /)
      assert.ok(stdout.includes(`$ bluesky-backups ${command.join(' ')}`))
      assert.match(stdout, / --json +print one JSON object\n/)
    })
  }

  it('tells each setting of the service with its variable and default', async () => {
    const { stdout } = await agent.run(['serve', '--help'])
    const text = stdout.replace(/\s+/g, ' ')
    for (const part of [
      '--port <NUMBER> port to listen on; 0 for any (env: BLUESKY_BACKUPS_PORT, default: 8787)',
      '--plc-url <URL> PLC directory (env: BLUESKY_BACKUPS_PLC_URL, default: https://plc.directory/)',
      '(env: BLUESKY_BACKUPS_GATEWAY_URLS, default: https://w3s.link/)',
      '(env: BLUESKY_BACKUPS_TRUSTED_AUTHORITIES)',
      '(env: BLUESKY_BACKUPS_ALLOW_PRIVATE_NETWORK)',
    ]) {
      assert.ok(text.includes(part), part)
    }
  })

  it('has help and a version', async () => {
    const help = await agent.run(['--help'])
    assert.equal(help.code, 0)
    assert.match(help.stdout, /\nCommands:\n/)
    const { code, stdout } = await agent.run(['--version'])
    assert.equal(code, 0)
    assert.equal(stdout, `${packageJson.version}\n`)
  })

  it('shows help when it is not told what to do', async () => {
    for (const argv of [[], ['backup'], ['space']]) {
      const { code, stdout, stderr } = await agent.run(argv)
      assert.equal(code, 2)
      assert.equal(stdout, '')
      assert.match(stderr, /^Usage: bluesky-backups/)
    }
  })

  it('does not take what it does not know', async () => {
    for (const [argv, message] of [
      [['frobnicate'], /^error: unknown command 'frobnicate'/],
      [['whoami', '--frobnicate'], /^error: unknown option '--frobnicate'/],
      [['whoami', 'now'], /^error: too many arguments/],
      [['backup', 'erase'], /^error: unknown command 'erase'/],
    ] as const) {
      const { code, stdout, stderr } = await agent.run([...argv])
      assert.equal(code, 2)
      assert.equal(stdout, '')
      assert.match(stderr, message)
      assert.match(stderr, /see --help/)
    }
  })

  it('gives errors as an object if asked for', async () => {
    for (const [argv, name, message] of [
      [['frobnicate'], 'UsageError', /^unknown command 'frobnicate'/],
      [['whoami', '--frobnicate'], 'UsageError', /^unknown option/],
      [['login', 'nobody'], 'UsageError', /^"nobody" is not an email address/],
      [['whoami', '--plc-url', 'x'], 'ConfigError', /--plc-url: must be/],
    ] as const) {
      const { code, stderr, json } = await agent.run([...argv, '--json'])
      assert.equal(code, 2)
      assert.equal(stderr, '')
      assert.equal(json.error.name, name)
      assert.match(json.error.message, message)
    }
  })

  it('names each setting that is wrong', async () => {
    const { code, stderr } = await agent.run(
      ['serve', '--port', 'high', '--drain-timeout', '-1'],
      { env: { BLUESKY_BACKUPS_LOG_LEVEL: 'loud' } }
    )
    assert.equal(code, 2)
    assert.match(stderr, /^error: the configuration cannot be used:\n/)
    assert.match(stderr, /\n {2}--port: must be a whole number\n/)
    assert.match(stderr, /\n {2}--drain-timeout: must be a whole number\n/)
    assert.match(stderr, /\n {2}BLUESKY_BACKUPS_LOG_LEVEL: /)
  })

  it('tells where an error comes from only if asked', async () => {
    await writeFile(join(folder.path, 'file'), '')
    const agent = new Agent(join(folder.path, 'file', 'agent'), {})
    const quiet = await agent.run(['whoami'])
    assert.equal(quiet.code, 1)
    assert.match(quiet.stderr, /^error: the agent's file [^\n]+\n$/)
    const verbose = await agent.run(['whoami', '--verbose'])
    assert.match(verbose.stderr, /\nAgentFileError: .*\n +at /)
    assert.match(verbose.stderr, /\nError: ENO.*/)
  })

  it('does not start the network with ports or accounts that are none', async () => {
    for (const [argv, message] of [
      [['--plc-port', '0'], /--plc-port: must be a port/],
      [['--pds-port', '70000'], /--pds-port: must be a port/],
      [['--account', 'alice'], /--account: give a handle that ends in .test/],
      [['--account', 'alice.com:x'], /--account: give a handle/],
    ] as const) {
      const { code, stderr } = await agent.run(['network', ...argv])
      assert.equal(code, 2)
      assert.match(stderr, message)
    }
  })
})
