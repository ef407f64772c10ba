import type { Command } from 'commander'
import { latestBackup } from '../../space/index.ts'
import { agentCommand, type CommandContext } from '../command.ts'
import { formatFields, formatTable, printable } from '../format.ts'
import { describeProgress } from '../progress.ts'
import { listRuns } from '../run.ts'
import { viewSpace } from '../target.ts'

/** `status`: how everything stands. */
export function createStatusCommand(
  program: Command,
  context: CommandContext
): void {
  const command = program
    .command('status')
    .description(
      'show the agent, its Space, the service, the last backup of each account, and runs'
    )
  agentCommand(
    command,
    context,
    'bluesky-backups status --service https://backups.example',
    async ({ session }) => {
      const { client, config } = session
      const space = session.space()
      const service = config.serviceUrl
        ? await session.service().catch((error: Error) => error)
        : undefined
      const agent = client.did()
      if (service instanceof Error) {
        return {
          failed: true,
          json: {
            agent,
            space,
            service: {
              url: config.serviceUrl?.href,
              reachable: false,
              error: { name: service.name, message: service.message },
            },
          },
          text: formatFields([
            ['agent', agent],
            ['space', space],
            ['service', service.message],
          ]),
        }
      }
      const view = await viewSpace(session)
      const accounts: { account: string; lastBackup: string | null }[] = []
      for (const account of view.accounts) {
        const latest = await latestBackup(view.blocks, view.state, account)
        accounts.push({ account, lastBackup: latest?.timestamp ?? null })
      }
      const runs = service ? await listRuns(session, service) : []
      const parts = [
        formatFields([
          ['agent', agent],
          ['space', `${client.currentSpace()?.name}  ${space}`.trim()],
          [
            'service',
            service
              ? `${service.url.href} (${printable(service.info.name)} ${printable(service.info.version)})`
              : 'none: the clock is kept by this agent',
          ],
          ['', service && service.info.did],
          ['', service && service.info.agent],
          ['head', view.head.join(', ') || 'no events yet'],
        ]),
        ...(accounts.length === 0
          ? []
          : [
              formatTable(
                ['ACCOUNT', 'LAST BACKUP'],
                accounts.map(({ account, lastBackup }) => [
                  account,
                  lastBackup ?? 'none',
                ])
              ),
            ]),
        ...(runs.length === 0
          ? []
          : [
              formatTable(
                ['RUN STARTED', 'ACCOUNT', 'STATE', ''],
                runs.map((run) => [
                  new Date(run.created).toISOString(),
                  run.account,
                  run.state,
                  printable(describeRun(run)),
                ])
              ),
            ]),
      ]
      return {
        json: {
          agent,
          space,
          service: service
            ? { url: service.url.href, reachable: true, ...service.info }
            : null,
          head: view.head,
          accounts,
          runs: runs.map((run) => ({ ...run, run: run.run.toString() })),
        },
        text: parts.join('\n\n'),
      }
    }
  )
}

function describeRun({
  state,
  outcome,
  progress,
  error,
}: Awaited<ReturnType<typeof listRuns>>[number]): string {
  if (error) return `${error.name}: ${error.message}`
  if (outcome) return outcome.kind
  return state === 'running' && progress ? describeProgress(progress) : ''
}
