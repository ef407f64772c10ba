import assert from 'node:assert/strict'
import { join } from 'node:path'
import { DEFAULT_LIMITS } from '../../src/backup/index.ts'
import {
  ConfigError,
  flagOf,
  readConfig,
  SETTINGS,
  variableOf,
  type SettingName,
} from '../../src/service/index.ts'
import { readSettings } from '../../src/service/config.ts'

const KEY = 'did:key:z6MkvpF1VvmvPV1XAsc2BsSLQFBKqPX3hUJHKXzwTtYx9Sts'
const OTHER_KEY = 'did:key:z6MkqArtr6rnahcZQYwwH7ZaRwMXJUqGaypnK5ByNApdqzCC'

/** Plain values, for comparing. */
const plain = (value: unknown): unknown =>
  value instanceof URL
    ? value.href
    : Array.isArray(value)
      ? value.map(plain)
      : value

/** For each setting: what it is when not given, and what it reads. */
const GOOD: Record<
  SettingName,
  { unset: unknown; reads: Record<string, unknown> }
> = {
  publicUrl: {
    unset: undefined,
    reads: {
      'https://backups.example': 'https://backups.example/',
      'http://localhost:8080/': 'http://localhost:8080/',
    },
  },
  role: { unset: 'all', reads: { all: 'all' } },
  host: { unset: '127.0.0.1', reads: { '0.0.0.0': '0.0.0.0', '::1': '::1' } },
  port: { unset: 8787, reads: { '0': 0, '65535': 65535 } },
  metricsHost: { unset: '127.0.0.1', reads: { '::1': '::1' } },
  metricsPort: { unset: undefined, reads: { '0': 0, '9464': 9464 } },
  dataFolder: {
    unset: './bluesky-backups-data',
    reads: { '/var/lib/x': '/var/lib/x' },
  },
  keyFile: {
    unset: join('bluesky-backups-data', 'service.key'),
    reads: { '/run/secrets/key': '/run/secrets/key' },
  },
  clientKeyFile: {
    unset: join('bluesky-backups-data', 'client-keys.json'),
    reads: { '/run/secrets/keys': '/run/secrets/keys' },
  },
  replaceKey: {
    unset: undefined,
    reads: { 'did:key:z6Mkold': 'did:key:z6Mkold' },
  },
  databaseUrl: {
    unset: undefined,
    reads: {
      'postgres://u:p@h/db': 'postgres://u:p@h/db',
      'postgresql://h/db': 'postgresql://h/db',
    },
  },
  uploadServiceUrl: {
    unset: 'https://up.storacha.network/',
    reads: { 'http://localhost:1/path': 'http://localhost:1/path' },
  },
  uploadServiceDid: {
    unset: 'did:web:up.storacha.network',
    reads: { 'did:web:up.example': 'did:web:up.example', [KEY]: KEY },
  },
  receiptsUrl: {
    unset: 'https://up.storacha.network/receipt/',
    reads: {
      'http://localhost:1/receipt': 'http://localhost:1/receipt/',
      'http://localhost:1/receipt/': 'http://localhost:1/receipt/',
    },
  },
  gatewayUrls: {
    unset: ['https://w3s.link/'],
    reads: {
      'https://one.example': ['https://one.example/'],
      'https://one.example/a, http://two.example/b/\n': [
        'https://one.example/a/',
        'http://two.example/b/',
      ],
    },
  },
  plcUrl: {
    unset: 'https://plc.directory/',
    reads: { 'http://localhost:2582': 'http://localhost:2582/' },
  },
  handleResolverUrl: {
    unset: undefined,
    reads: { 'https://bsky.social': 'https://bsky.social/' },
  },
  trustedAuthorities: {
    unset: [],
    reads: {
      [`did:web:up.example=${KEY} did:web:localhost%3A1=${OTHER_KEY}`]: [
        { did: 'did:web:up.example', key: KEY },
        { did: 'did:web:localhost%3A1', key: OTHER_KEY },
      ],
    },
  },
  allowPrivateNetwork: {
    unset: false,
    reads: { true: true, '1': true, false: false, '0': false },
  },
  maxBodySize: {
    unset: 4 * 1024 * 1024,
    reads: { '1024': 1024, '67108864': 67108864 },
  },
  maxBlobSize: { unset: DEFAULT_LIMITS.maxBlobSize, reads: { '1': 1 } },
  concurrentRuns: { unset: 4, reads: { '1': 1, '1000': 1000 } },
  concurrentBlobs: { unset: DEFAULT_LIMITS.concurrentBlobs, reads: { '3': 3 } },
  keepRuns: { unset: 90, reads: { '1': 1, '36500': 36_500 } },
  drainTimeout: { unset: 20, reads: { '0': 0, '3600': 3600 } },
  revocationsUrl: {
    unset: 'https://up.storacha.network/revocations/',
    reads: { 'https://up.example/revoked': 'https://up.example/revoked/' },
  },
  revocationsPolicy: {
    unset: 'open',
    reads: { open: 'open', closed: 'closed', off: 'off' },
  },
  revocationsMaxAge: { unset: 300, reads: { '1': 1, '86400': 86_400 } },
  provisioningPolicy: {
    unset: 'require',
    reads: { require: 'require', warn: 'warn', off: 'off' },
  },
  provisioningMaxAge: { unset: 86_400, reads: { '1': 1, '3600': 3600 } },
  spaceRate: { unset: 6000, reads: { '0': 0, '1': 1 } },
  issuerRate: { unset: 1200, reads: { '0': 0, '1000000': 1_000_000 } },
  hostRate: { unset: 480, reads: { '0': 0, '1': 1 } },
  repoTimeout: { unset: 600, reads: { '1': 1, '86400': 86_400 } },
  leastRate: { unset: 1024, reads: { '0': 0, '1000000': 1_000_000 } },
  schedulesPerSpace: { unset: 1000, reads: { '1': 1, '1000000': 1_000_000 } },
  minScheduleInterval: { unset: 300, reads: { '1': 1, '86400': 86_400 } },
  logLevel: { unset: 'info', reads: { debug: 'debug', silent: 'silent' } },
}

const NUMBERS = ['-1', '1.5', 'many', '0x10', '1e3', ' 1', '9'.repeat(400)]
const URLS = ['localhost', 'ftp://host', 'https://alice:hush@host', 'https://']

const BAD: Record<SettingName, string[]> = {
  publicUrl: [
    ...URLS,
    'https://host/path',
    'https://host/?q',
    'https://host/#f',
  ],
  host: [],
  port: [...NUMBERS, '65536'],
  metricsHost: [],
  metricsPort: [...NUMBERS, '65536'],
  dataFolder: [],
  role: ['everything', 'worker,api'],
  keyFile: [],
  clientKeyFile: [],
  replaceKey: ['true', 'did:web:backups.example', 'did:key:', 'did:key:z a'],
  databaseUrl: ['mysql://host/db', 'hush'],
  uploadServiceUrl: URLS,
  uploadServiceDid: ['up.example', 'did:plc:x', 'did:web:', 'did:web:a b'],
  receiptsUrl: URLS,
  gatewayUrls: [...URLS, 'https://one.example,nonsense', ' , '],
  plcUrl: URLS,
  handleResolverUrl: URLS,
  trustedAuthorities: [
    'did:web:up.example',
    'did:web:up.example=did:web:other.example',
    'did:mailto:x:y=did:key:z6Mk',
    'did:web:up.example=did:key:z6Mkhush',
  ],
  allowPrivateNetwork: ['yes', 'TRUE'],
  maxBodySize: [...NUMBERS, '1023', '67108865'],
  maxBlobSize: [...NUMBERS, '0'],
  concurrentRuns: [...NUMBERS, '0', '1001'],
  concurrentBlobs: [...NUMBERS, '0', '101'],
  keepRuns: [...NUMBERS, '0', '36501'],
  drainTimeout: [...NUMBERS, '3601'],
  revocationsUrl: URLS,
  revocationsPolicy: ['on', 'OPEN'],
  revocationsMaxAge: [...NUMBERS, '0', '86401'],
  provisioningPolicy: ['on', 'REQUIRE'],
  provisioningMaxAge: [...NUMBERS, '0', '31536001'],
  spaceRate: [...NUMBERS, '1000001'],
  issuerRate: [...NUMBERS, '1000001'],
  hostRate: [...NUMBERS, '1000001'],
  repoTimeout: [...NUMBERS, '0', '86401'],
  leastRate: [...NUMBERS, '1000000001'],
  schedulesPerSpace: [...NUMBERS, '0', '1000001'],
  minScheduleInterval: [...NUMBERS, '0', '86401'],
  logLevel: ['loud', 'INFO'],
}

const NAMES = Object.keys(SETTINGS) as SettingName[]

describe('configuration', () => {
  for (const name of NAMES) {
    describe(name, () => {
      const { unset, reads } = GOOD[name]

      it('need not be given', () => {
        assert.deepEqual(plain(readConfig({}, {})[name]), unset)
      })

      for (const [text, value] of Object.entries(reads)) {
        it(`may be ${text}`, () => {
          const config = readConfig({ [name]: text }, {})
          assert.deepEqual(plain(config[name]), value)
          const fromVariable = readConfig({}, { [variableOf(name)]: text })
          assert.deepEqual(fromVariable, config)
        })
      }

      for (const text of BAD[name]) {
        it(`may not be ${text.slice(0, 50)}`, () => {
          const sources = {
            [`--${flagOf(name)}`]: [{ [name]: text }, {}],
            [variableOf(name)]: [{}, { [variableOf(name)]: text }],
          } as const
          for (const [source, [flags, environment]] of Object.entries(
            sources
          )) {
            assert.throws(
              () => readConfig(flags, environment),
              (error) => {
                assert.ok(error instanceof ConfigError)
                assert.equal(error.problems.length, 1)
                assert.ok(error.problems[0]!.startsWith(`${source}: `))
                assert.doesNotMatch(error.message, /alice:hush/)
                return true
              }
            )
          }
        })
      }

      it('is described', () => {
        const { description, value } = SETTINGS[name]
        assert.ok(description.length > 10)
        assert.match(value, /^[A-Z]*$/)
      })
    })
  }

  it('is named alike in flags and in the environment', () => {
    assert.equal(flagOf('publicUrl'), 'public-url')
    assert.equal(variableOf('publicUrl'), 'BLUESKY_BACKUPS_PUBLIC_URL')
  })

  it('has flags before variables', () => {
    const { port } = readConfig(
      { port: '1' },
      { BLUESKY_BACKUPS_PORT: '2', DATABASE_URL: '' }
    )
    assert.equal(port, 1)
  })

  it('takes an empty variable for none', () => {
    const empty = Object.fromEntries(
      NAMES.map((name) => [variableOf(name), ''])
    )
    assert.deepEqual(readConfig({}, empty), readConfig({}, {}))
  })

  it('knows DATABASE_URL, after its own variable', () => {
    const environment = { DATABASE_URL: 'postgres://one/db' }
    assert.equal(readConfig({}, environment).databaseUrl, 'postgres://one/db')
    assert.equal(
      readConfig(
        {},
        {
          ...environment,
          BLUESKY_BACKUPS_DATABASE_URL: 'postgres://two/db',
        }
      ).databaseUrl,
      'postgres://two/db'
    )
    assert.throws(
      () => readConfig({}, { DATABASE_URL: 'mysql://u:hush@h/db' }),
      {
        problems: ['DATABASE_URL: must be a postgres:// URL'],
      }
    )
  })

  it('keeps the key in the data folder', () => {
    assert.equal(
      readConfig({ dataFolder: '/data' }, {}).keyFile,
      '/data/service.key'
    )
    assert.equal(
      readConfig({ dataFolder: '/data', keyFile: '/key' }, {}).keyFile,
      '/key'
    )
  })

  it('tells of every bad value at once, a line for each', () => {
    assert.throws(
      () =>
        readConfig(
          { port: 'many', gatewayUrls: 'one,https://two.example,three' },
          { BLUESKY_BACKUPS_LOG_LEVEL: 'loud' }
        ),
      (error) => {
        assert.ok(error instanceof ConfigError)
        const lines = error.message.split('\n')
        assert.equal(lines.shift(), 'the configuration cannot be used:')
        assert.deepEqual(
          lines.map((line) => line.trim()),
          error.problems
        )
        assert.deepEqual(
          error.problems.map((problem) => problem.split(':')[0]),
          [
            '--port',
            '--gateway-urls',
            '--gateway-urls',
            'BLUESKY_BACKUPS_LOG_LEVEL',
          ]
        )
        return true
      }
    )
  })

  it('can be read in part', () => {
    const environment = {
      BLUESKY_BACKUPS_PORT: 'many',
      BLUESKY_BACKUPS_MAX_BLOB_SIZE: '5',
    }
    assert.deepEqual(readSettings(['maxBlobSize'], {}, environment), {
      maxBlobSize: 5,
    })
  })
})
