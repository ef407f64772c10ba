import type {
  GrantState,
  HostTroubleKind,
  RunState,
  ScheduleState,
} from './interface.ts'

/** Rows as both databases hold them; see `migrations.ts`. */
export interface Tables {
  /** `head` is a JSON array of CIDs, sorted. */
  clocks: { space: string; head: string }
  events: { space: string; event: string; bytes: Uint8Array }
  runs: RunRow
  receipts: { task: string; bytes: Uint8Array }
  schedules: ScheduleRow
  spaces: { space: string; provisioned: number; checked: number }
  revocations: {
    delegation: string
    revoker: string
    cause: Uint8Array
    created: number
  }
  journal: {
    space: string
    account: string
    key: string
    position: number
    bytes: Uint8Array
  }
  /** One row, of `id` 1. */
  service: { id: number; agent: string }
  hosts: {
    host: string
    kind: HostTroubleKind
    failures: number
    closures: number
    until: number
  }
  /** Of `rate-limiter-flexible`, in its words. On PostgreSQL alone in use. */
  host_budgets: { key: string; points: number; expire: number | null }
  jobs: JobRow
  dead_jobs: DeadJobRow
  grant_requests: GrantRequestRow
  grants: GrantRow
  grant_returns: GrantReturnRow
}

/** Times are Unix milliseconds; JSON is text. */
export interface RunRow {
  id: string
  space: string
  account: string
  agent: string
  include: string
  authority: Uint8Array
  /** 1 for a run that a schedule asks for. */
  scheduled: number
  host: string | null
  /** 1 for a run that has made an event. */
  eventful: number
  state: RunState
  progress: string | null
  outcome: string | null
  error: string | null
  created: number
  updated: number
  started: number | null
  finished: number | null
  attempts: number
  owner: string | null
  lease_expiration: number | null
}

/** A job of the embedded engine that has not come to its end. */
export interface JobRow {
  id: string
  kind: string
  key: string
  slot: string
  priority: number
  data: string
  state: 'queued' | 'active'
  created: number
  start_after: number
  /** How often it was claimed. */
  claims: number
  /** Claims that do not count as attempts. */
  excused: number
  owner: string | null
  lease_expiration: number | null
}

/** A job, of either engine, that was given up. */
export interface DeadJobRow {
  id: string
  kind: string
  key: string
  slot: string
  data: string
  attempts: number
  error: string
  died: number
}

/** Times are Unix milliseconds; JSON is text. */
export interface ScheduleRow {
  space: string
  account: string
  rhythm: string
  anchor: number
  include: string | null
  delegation: string
  delegation_bytes: Uint8Array
  delegation_expiration: number | null
  host: string | null
  state: ScheduleState
  reason: string | null
  paused_until: number | null
  next: number | null
  last_run: string | null
  created: number
  updated: number
  /** How many decisions there were. */
  version: number
  owner: string | null
  lease_expiration: number | null
  /** The version that was claimed. */
  claimed_version: number | null
  /** When somebody began with what is claimed. */
  begun: number | null
}

export interface GrantRequestRow {
  state: string
  space: string
  account: string
  sealed: Uint8Array
  delegation: Uint8Array
  expires: number
}

/** Times are Unix milliseconds, but for `expiration`; JSON is text. */
export interface GrantRow {
  space: string
  account: string
  seq: number
  /** Nothing, once the clock has it. */
  sealed: Uint8Array | null
  /** Unix seconds. */
  expiration: number
  recipient: string | null
  scope: string
  scope_version: number
  asked: string
  parts: string
  state: GrantState
  reason: string | null
  delegation: Uint8Array
  created: number
  refreshed: number
  updated: number
  /** The `seq` that the clock has. */
  published: number
  /** When it was last tried to put it into the Space. */
  attempted: number
  /** When a refresh was begun that nobody has seen the end of. */
  refreshing: number | null
  /** What the host has answered to it, sealed. */
  answer: Uint8Array | null
  owner: string | null
  lease_expiration: number | null
}

/** Times are Unix milliseconds, but for `expiration`. */
export interface GrantReturnRow {
  id: string
  space: string
  account: string
  seq: number
  sealed: Uint8Array
  /** Unix seconds. */
  expiration: number
  attempted: number
}
