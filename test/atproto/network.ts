import { randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { AtpAgent } from '@atproto/api'
import { Secp256k1Keypair } from '@atproto/crypto'
import { PDS, envToCfg, envToSecrets } from '@atproto/pds'
import { Database, PlcServer } from '@did-plc/server'

export interface TestServer extends AsyncDisposable {
  url: URL
}

/** Starts an HTTP server on loopback, to be hostile with. */
export async function startServer(
  listener: RequestListener
): Promise<TestServer> {
  const server = createServer(listener)
  await new Promise<void>((resolve) =>
    server.listen(0, '127.0.0.1', () => resolve())
  )
  const { port } = server.address() as AddressInfo
  return {
    url: new URL(`http://127.0.0.1:${port}`),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

async function freePort(): Promise<number> {
  await using server = await startServer(() => {})
  return Number(server.url.port)
}

/** A PLC directory and a PDS on loopback, real ones. */
export interface TestNetwork extends AsyncDisposable {
  plcUrl: URL
  pdsUrl: URL
  pds: PDS
  /** Creates an account `NAME.test` and signs in to it. */
  createAccount(name: string): Promise<AtpAgent & { did: string }>
  /** Makes a request as the host's administrator. */
  administer(method: string, input: object): Promise<void>
}

export async function startNetwork(): Promise<TestNetwork> {
  const plcPort = await freePort()
  const plc = PlcServer.create({ db: Database.mock(), port: plcPort })
  await plc.start()
  const plcUrl = new URL(`http://localhost:${plcPort}`)

  const port = await freePort()
  const directory = await mkdtemp(join(tmpdir(), 'pds-'))
  await mkdir(join(directory, 'blobs'))
  const rotationKey = await Secp256k1Keypair.create({ exportable: true })
  const adminPassword = randomBytes(16).toString('hex')
  const environment = {
    devMode: true,
    port,
    hostname: 'localhost',
    dataDirectory: directory,
    blobstoreDiskLocation: join(directory, 'blobs'),
    recoveryDidKey: (await Secp256k1Keypair.create()).did(),
    adminPassword,
    jwtSecret: randomBytes(16).toString('hex'),
    dpopSecret: randomBytes(32).toString('hex'),
    plcRotationKeyK256PrivateKeyHex: Buffer.from(
      await rotationKey.export()
    ).toString('hex'),
    didPlcUrl: plcUrl.origin,
    serviceHandleDomains: ['.test'],
    inviteRequired: false,
    disableSsrfProtection: true,
    serviceName: 'Test PDS',
    logLevel: 'fatal',
  }
  const pds = await PDS.create(envToCfg(environment), envToSecrets(environment))
  await pds.start()
  const pdsUrl = new URL(`http://localhost:${port}`)

  return {
    plcUrl,
    pdsUrl,
    pds,
    async createAccount(name) {
      const agent = new AtpAgent({ service: pdsUrl })
      await agent.createAccount({
        handle: `${name}.test`,
        email: `${name}@example.com`,
        password: 'password',
      })
      return agent as AtpAgent & { did: string }
    },
    async administer(method, input) {
      const credentials = Buffer.from(`admin:${adminPassword}`)
      const response = await fetch(new URL(`/xrpc/${method}`, pdsUrl), {
        method: 'POST',
        headers: {
          authorization: `Basic ${credentials.toString('base64')}`,
          'content-type': 'application/json',
        },
        body: JSON.stringify(input),
      })
      if (!response.ok) throw new Error(await response.text())
    },
    async [Symbol.asyncDispose]() {
      await pds.destroy()
      await plc.destroy()
      await rm(directory, { recursive: true, force: true })
    },
  }
}
