// What does Prisma's schema engine need that @prisma/adapter-pg 7.10 does not give it?
//  - Columns of PostgreSQL's type "char" (the catalogue is full of them) as characters: the adapter refuses the type, and
//    given text the engine panics on CHECK constraints.
//  - A migration's script whole: the adapter splits it at every ';', which breaks functions and DO blocks.
//  - A shadow database that is one: given a connection string, the adapter's would be the main database.
import { randomUUID } from 'node:crypto';
import { PrismaPg } from '@prisma/adapter-pg';
import { ColumnTypeEnum } from '@prisma/driver-adapter-utils';
import pg from 'pg';

const CHAR = 18; // oids of pg_type
const TEXT = 25;

function correct(adapter) {
  const { queryRaw } = adapter;
  adapter.queryRaw = async (query) => {
    const characters = [];
    const asText = Object.create(adapter, {
      performIO: {
        value: async (statement) => {
          const result = await adapter.performIO(statement);
          result.fields.forEach((field, index) => {
            if (field.dataTypeID !== CHAR) return;
            field.dataTypeID = TEXT;
            characters.push(index);
          });
          return result;
        },
      },
    });
    const rows = await queryRaw.call(asText, query);
    for (const index of characters) rows.columnTypes[index] = ColumnTypeEnum.Character;
    return rows;
  };
  const pool = adapter.underlyingDriver();
  adapter.executeScript = async (script) => {
    try {
      await pool.query(script);
    } catch (error) {
      adapter.onError(error);
    }
  };
  return adapter;
}

export class SchemaPg extends PrismaPg {
  constructor(databaseUrl) {
    const url = new URL(databaseUrl);
    super({
      host: url.hostname,
      port: Number(url.port || 5432),
      user: decodeURIComponent(url.username),
      password: decodeURIComponent(url.password) || undefined,
      database: decodeURIComponent(url.pathname.slice(1)),
      max: 1,
    });
  }

  async connect() {
    return correct(await super.connect());
  }

  async connectToShadowDb() {
    const admin = new pg.Client(this.config);
    await admin.connect();
    const database = `hourhand_shadow_${randomUUID().replaceAll('-', '')}`;
    await admin.query(`CREATE DATABASE "${database}"`);
    const there = Object.create(this, { config: { value: { ...this.config, database } } });
    const adapter = await super.connect.call(there);
    const release = adapter.release?.bind(adapter);
    adapter.release = async () => {
      await release?.();
      await admin.query(`DROP DATABASE "${database}" WITH (FORCE)`);
      await admin.end();
    };
    return correct(adapter);
  }
}
