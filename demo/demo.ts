/**
 * The whole path once, on loopback: a real account on a real PDS is backed up
 * into a real Space through the service, changed, backed up again, exported,
 * and compared with what the PDS serves.
 */
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import * as StorachaClient from '@storacha/client'
import { StoreMemory } from '@storacha/client/stores/memory'
import { CarReader } from '@ipld/car/reader'
import type { Delegation } from '@ucanto/interface'
import Table from 'cli-table3'
import { CID } from 'multiformats/cid'
import { BACKUP_ABILITIES } from '../src/capabilities/index.ts'
import type { Backup as BackupProtocol } from '../src/capabilities/index.ts'
import { exportBackup } from '../src/cli/export.ts'
import { openBackup } from '../src/backup/index.ts'
import { Backup, Clock, connect, discover } from '../src/client/index.ts'
import { createNativeSha256 } from '../src/node/index.ts'
import { readConfig, startService } from '../src/service/index.ts'
import { listBackups, mergeHeads } from '../src/space/index.ts'
import type { DID, EventLink } from '../src/space/index.ts'
import { connectUploadService, createSpaceReader } from '../src/storacha/index.ts'
import { startNetwork, seedAccount, createBytes } from '../test/network/index.ts'
